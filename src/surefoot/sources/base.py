"""What every source is: experience by the policy, and a state that can be saved and gone on from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import gymnasium
import numpy as np
from jaxtyping import PRNGKeyArray

from surefoot.batch import Trajectory
from surefoot.policy import NeuralPolicy

LARGEST_REWARD = 1e15
"""A reward beyond it, discounted and squared, would leave the range of 32 bits."""


class Source(ABC):
    """Abstract: N environments that a policy acts in.

    `collect` is a function of its arguments: the same policy, state and key give the same trajectory and
    the same next state, also for a state that is not the newest.

    Attributes:
        name: what the user called the environment.
        observation_space: of one environment.
        action_space: of one environment.
        envs: how many environments, N.
        horizon: steps of each that one `collect` takes, T.
    """

    name: str
    observation_space: gymnasium.Space
    action_space: gymnasium.Space
    envs: int
    horizon: int

    @abstractmethod
    def reset(self, key: PRNGKeyArray) -> Any:
        """The state in which every environment stands at the start of its first episode."""

    @abstractmethod
    def collect(self, policy: NeuralPolicy, state: Any, key: PRNGKeyArray) -> tuple[Trajectory, Any]:
        """Act for T steps in each environment: the trajectory and the state after it."""

    @abstractmethod
    def pack(self, state: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """A state as arrays by name and plain values, from which `unpack` makes the same state again."""

    @abstractmethod
    def unpack(self, arrays: dict[str, np.ndarray], facts: dict[str, Any], like: Any) -> Any:
        """The state that `pack` was given; `like` is any state of this source. Raises RunError where it is none."""

    @abstractmethod
    def told(self, state: Any) -> dict[str, Any]:
        """How the collection went that led to this state, as metrics; empty where there is nothing to say."""

    @abstractmethod
    def close(self) -> None:
        """Let the environments go. The source can still be used: it builds them again."""
