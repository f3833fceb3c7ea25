// Scales, ticks and the frame of a chart.

const LOG_STEPS = [
  [1],
  [1, 3],
  [1, 2, 5],
  [1, 1.5, 2, 3, 5, 7],
  [1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8],
  Array.from({ length: 45 }, (_, i) => 1 + i / 5),
  Array.from({ length: 90 }, (_, i) => 1 + i / 10),
];

function logTicks(low, high) {
  for (const steps of LOG_STEPS) {
    const ticks = [];
    for (let exponent = Math.floor(Math.log10(low)); exponent <= Math.log10(high); exponent++) {
      ticks.push(...steps.map((step) => Number((step * 10 ** exponent).toPrecision(6))));
    }
    const inside = ticks.filter((tick) => tick >= low && tick <= high);
    if (inside.length >= 4) return inside;
  }
  return linearTicks(low, high);
}

function linearTicks(low, high, about = 5) {
  const rough = (high - low) / about;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 2.5, 5, 10].find((factor) => factor * power >= rough * 0.999);
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 }, (_, i) =>
    Number(((first + i) * step).toPrecision(12)),
  );
}

/** A map of values to pixels from..to, with room around the values, and its ticks. */
function scale(values, logarithmic, from, to, { pad = 0.06 } = {}) {
  const usable = values.filter(logarithmic ? isPositive : isNumber);
  const forth = logarithmic ? Math.log10 : (value) => value;
  const back = logarithmic ? (value) => 10 ** value : (value) => value;
  let low = usable.length ? forth(Math.min(...usable)) : 0;
  let high = usable.length ? forth(Math.max(...usable)) : 1;
  const room = Math.max(pad * (high - low), high > low ? 0 : logarithmic ? 0.1 : Math.abs(high) / 10 || 1);
  low -= room;
  high += room;
  return {
    at: (value) => from + ((forth(value) - low) / (high - low)) * (to - from),
    ticks: (logarithmic ? logTicks : linearTicks)(back(low), back(high)),
  };
}

const tickText = (value) => value.toLocaleString("en-US", { maximumSignificantDigits: 4 });

/** What of `items` can be written beside each other: those whose places are at least `apart` pixels from the last. */
function spaced(items, place, apart) {
  const kept = [];
  for (const item of [...items].sort((a, b) => place(a) - place(b))) {
    if (!kept.length || place(item) - place(kept.at(-1)) >= apart) kept.push(item);
  }
  return kept;
}

/** Grid, ticks and the names of both axes; box: {left, right, top, bottom} in pixels. */
function frame(box, x, y, xLabel, yLabel, { xGrid = true } = {}) {
  const group = drawn("g", { "aria-hidden": "true" });
  const yTop = box.labelTop ?? box.top - 12;
  for (const tick of spaced(y.ticks, y.at, 16)) {
    const at = y.at(tick);
    group.append(
      drawn("line", { class: "grid", x1: box.left, x2: box.right, y1: at, y2: at }),
      drawn("text", { x: box.left - 8, y: at, dy: "0.32em", "text-anchor": "end" }, tickText(tick)),
    );
  }
  const inside = x.ticks.filter((tick) => x.at(tick) >= box.left - 0.5 && x.at(tick) <= box.right + 0.5);
  for (const tick of spaced(inside, x.at, 44)) {
    const at = x.at(tick);
    if (xGrid) group.append(drawn("line", { class: "grid", x1: at, x2: at, y1: box.top, y2: box.bottom }));
    group.append(
      drawn("line", { class: "axis", x1: at, x2: at, y1: box.bottom, y2: box.bottom + 4 }),
      drawn("text", { x: at, y: box.bottom + 17, "text-anchor": "middle" }, tickText(tick)),
    );
  }
  group.append(
    drawn("line", { class: "axis", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom }),
    drawn("line", { class: "axis", x1: box.left, x2: box.left, y1: box.top, y2: box.bottom }),
    drawn("text", { x: box.right, y: box.bottom + 36, "text-anchor": "end" }, xLabel),
    drawn("text", { x: 0, y: yTop }, yLabel),
  );
  return group;
}

/** A host that draw(width) fills, and fills again when its width changes. */
function responsive(draw) {
  const host = element("div", { class: "plot" });
  let width = 0;
  const redraw = () => host.replaceChildren(draw(Math.max(width, 260)));
  new ResizeObserver(() => {
    const now = Math.floor(host.clientWidth);
    if (now === width || now === 0) return;
    width = now;
    requestAnimationFrame(redraw);
  }).observe(host);
  return { host, redraw };
}
