"use strict";
// Reads values at the pointer, or at where the arrow keys went. Every figure's data lies in it as JSON.

const SUPERSCRIPT = { "-": "⁻", 0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸", 9: "⁹" };

// As `number` in runs.py writes it, four figures.
function shown(value) {
  if (value === null) return "–";
  if (typeof value === "string") return value;
  if (value === 0) return "0";
  const [mantissa, exponent] = value.toExponential(3).split("e");
  const power = Number(exponent);
  const text = power >= -4 && power < 7
    ? value.toLocaleString("en", { maximumFractionDigits: Math.max(3 - power, 0) })
    : `${Number(mantissa)}·10${[...String(power)].map((digit) => SUPERSCRIPT[digit]).join("")}`;
  return text.replace("-", "−").replaceAll(",", "\u202f");
}

function steps(value) {
  for (const [size, unit] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (Math.abs(value) >= size) return shown(value / size) + unit;
  }
  return shown(value);
}

function height([low, high, linear], value) {
  const bent = linear ? (v) => Math.asinh(v / linear) : (v) => v;
  return (bent(Math.min(Math.max(value, -1e100), 1e100)) - bent(low)) / (bent(high) - bent(low));
}

// The place in ascending `values` that is nearest to `wanted`.
function nearest(values, wanted) {
  let low = 0;
  let high = values.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (values[middle] <= wanted) low = middle; else high = middle;
  }
  return Math.abs(values[low] - wanted) <= Math.abs(values[high] - wanted) ? low : high;
}

function reading(line, at) {
  const text = shown(line.values[at]);
  return line.lower && line.lower[at] !== null ? `${text} (${shown(line.lower[at])} … ${shown(line.upper[at])})` : text;
}

function interactive(figure) {
  const plot = figure.querySelector(".plot");
  const { x: [low, high], scales, runs } = JSON.parse(figure.querySelector("script").textContent);
  const areas = [...plot.querySelectorAll(".area")];
  const rows = plot.querySelectorAll(".readout .run");
  const stops = [...new Set(runs.flatMap((run) => run.x))].sort((a, b) => a - b);
  const across = (value) => `${100 * (value - low) / (high - low)}%`;
  const dots = runs.map((run) => run.lines.map((line) => {
    const dot = document.createElement("i");
    dot.className = "dot";
    dot.style.setProperty("--of", `var(--${line.colour})`);
    areas[line.panel].append(dot);
    return dot;
  }));
  let here = stops.length - 1;

  function show(run, number, wanted) {
    const row = rows[run.row];
    // A run that had ended by then, or had not begun, has no value there.
    const gap = run.x.length > 1 ? run.x[1] - run.x[0] : Infinity;
    const ended = wanted > run.x.at(-1) + gap / 2;
    const outside = ended || wanted < run.x[0] - gap / 2;
    const at = nearest(run.x, wanted);
    row.querySelector(".where").textContent = outside ? (ended ? "ended" : "not begun")
      : `update ${run.update[at].toLocaleString("en").replaceAll(",", "\u202f")}, ${steps(run.x[at])} steps`;
    const values = row.querySelectorAll(".value");
    run.lines.forEach((line, place) => {
      const value = outside ? null : line.values[at];
      values[place].textContent = outside ? "–" : reading(line, at);
      const dot = dots[number][place];
      dot.hidden = typeof value !== "number";
      if (dot.hidden) return;
      dot.style.left = across(run.x[at]);
      dot.style.top = `${100 * (1 - height(scales[line.panel], value))}%`;
    });
    const flags = Object.keys(run.flags).filter((flag) => run.flags[flag].includes(at));
    row.querySelector(".flags").textContent = outside ? "" : flags.join(", ");
  }

  function go(to) {
    here = Math.min(Math.max(to, 0), stops.length - 1);
    plot.classList.add("read");
    for (const area of areas) area.style.setProperty("--at", across(stops[here]));
    runs.forEach((run, number) => show(run, number, stops[here]));
  }

  function leave() {
    if (document.activeElement !== plot) plot.classList.remove("read");
  }

  function point(event) {
    const box = areas[0].getBoundingClientRect();
    go(nearest(stops, low + (high - low) * (event.clientX - box.left) / box.width));
  }

  const moves = {
    ArrowLeft: () => here - 1, ArrowRight: () => here + 1, PageUp: () => here - 10, PageDown: () => here + 10,
    Home: () => 0, End: () => stops.length - 1,
  };
  plot.addEventListener("keydown", (event) => {
    const move = moves[event.key];
    if (!move || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    go(move());
  });
  plot.addEventListener("focus", () => { if (plot.matches(":focus-visible")) go(here); });
  plot.addEventListener("blur", () => plot.classList.remove("read"));
  plot.addEventListener("pointermove", point);
  plot.addEventListener("pointerdown", point);
  plot.addEventListener("pointerleave", leave);
}

for (const figure of document.querySelectorAll("figure:has(> .plot)")) interactive(figure);
