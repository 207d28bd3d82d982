"""From a run's files to pictures. Reads files through `surefoot.history`, never live objects."""
