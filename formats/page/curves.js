// Curves of the SAEs, one colour and one shape each, and the legend that they share.

const SHAPES = [
  "M-4.5,0a4.5,4.5 0 1,0 9,0a4.5,4.5 0 1,0 -9,0Z",
  "M-4,-4H4V4H-4Z",
  "M0,-5.6L5.6,0L0,5.6L-5.6,0Z",
  "M0,-5.2L5.2,4H-5.2Z",
  "M0,5.2L5.2,-4H-5.2Z",
  "M-1.8,-5H1.8V-1.8H5V1.8H1.8V5H-1.8V1.8H-5V-1.8H-1.8Z",
  "M-4.8,-2.3L-2.3,-4.8L0,-2.5L2.3,-4.8L4.8,-2.3L2.5,0L4.8,2.3L2.3,4.8L0,2.5L-2.3,4.8L-4.8,2.3L-2.5,0Z",
  "M0,-5.8L1.6,-2L5.6,-1.8L2.5,0.8L3.5,4.8L0,2.6L-3.5,4.8L-2.5,0.8L-5.6,-1.8L-1.6,-2Z",
];

/** Colour and shape of SAE i: no two of the first 64 share both. */
const colour = (i) => `color: var(--c${i % 8})`;
const mark = (i, full = true) =>
  drawn("path", { class: full ? "mark filled" : "mark", d: SHAPES[(i + Math.floor(i / 8)) % 8] });
const swatch = (i) =>
  drawn("svg", { class: "swatch", viewBox: "-8 -8 16 16", style: colour(i), "aria-hidden": "true" }, mark(i));

/** Name and swatch of an SAE, for a table's cell or a tooltip. */
function saeLabel(name, tag = "span") {
  const i = SAES.findIndex((sae) => sae.name === name);
  return element(tag, { class: "named" }, i < 0 ? null : swatch(i), element("span", {}, breakable(shown(name))));
}

const PARTS = { side: "side information", columns: "integer columns" };

function pointTip(sae, point) {
  const rows = [["step", shown(point.step, FORMATS.step), "step"]];
  rows.push(["bits per row", withInterval(point.bits_per_row, point.bits_interval, FORMATS.rate), "bits_per_row"]);
  rows.push(["NMSE", withInterval(point.nmse, point.nmse_interval, FORMATS.nmse), "nmse"]);
  if (isNumber(point.nmse_median)) rows.push(["median of rows", shown(point.nmse_median, FORMATS.nmse), "nmse_median"]);
  if (isNumber(point.l0)) rows.push(["L0", shown(point.l0, FORMATS.rate), "l0"]);
  if (isNumber(point.metric)) {
    rows.push(["metric", withInterval(point.metric, point.metric_interval, FORMATS.value), "metric"]);
  }
  rows.at(-1)[3] = "before";
  entries(point.bytes)
    .filter(([, value]) => isPositive(value))
    .forEach(([part, value], i) =>
      rows.push([PARTS[part] ?? part, shown(value, FORMATS.count), part, i === 0 ? "rule" : null]),
    );
  rows.push(["bytes of the file", shown(point.file_bytes, FORMATS.count), "file_bytes", "rule"]);
  return [saeLabel(sae.name, "strong"), tipTable(rows)];
}

function onFront(sae, point) {
  return (
    FRONT.length === 0 ||
    FRONT.some((best) => best.sae === sae.name && best.nmse === point.nmse && best.bits_per_row === point.bits_per_row)
  );
}

/** Thin lines through a mark: the intervals of both coordinates. */
function whiskers(point, view, x, y, at) {
  const [across, up] = [list(point[view.x.interval]), list(point[view.y.interval])];
  const fit = (axis, interval) => interval.length === 2 && interval.every(axis.log ? isPositive : isNumber);
  return [
    fit(view.x, across) &&
      drawn("line", { class: "interval", x1: x.at(across[0]), x2: x.at(across[1]), y1: at.y, y2: at.y }),
    fit(view.y, up) && drawn("line", { class: "interval", x1: at.x, x2: at.x, y1: y.at(up[0]), y2: y.at(up[1]) }),
  ].filter(Boolean);
}

function curveOf(sae, i, view, x, y) {
  const points = list(sae.points)
    .filter((point) => usable(view.x, point) && usable(view.y, point))
    .sort((a, b) => a[view.x.key] - b[view.x.key]);
  const places = points.map((point) => ({ x: x.at(point[view.x.key]), y: y.at(point[view.y.key]) }));
  const group = drawn("g", { class: "curve", "data-sae": sae.name, style: colour(i) });
  group.append(...points.flatMap((point, j) => whiskers(point, view, x, y, places[j])));
  group.append(drawn("polyline", { class: "line", points: places.map((at) => `${at.x},${at.y}`).join(" ") }));
  points.forEach((point, j) => {
    const spoken =
      `${sae.name}, step ${shown(point.step, FORMATS.step)}: ${shown(point.bits_per_row, FORMATS.rate)} bits per row ` +
      `at NMSE ${shown(point.nmse, FORMATS.nmse)}`;
    const node = drawn(
      "g",
      {
        class: "point",
        tabindex: "0",
        role: "img",
        "aria-label": spoken,
        transform: `translate(${places[j].x},${places[j].y})`,
      },
      drawn("circle", { class: "hit", r: 12 }),
      mark(i, onFront(sae, point)),
    );
    withTip(node, () => pointTip(sae, point));
    group.append(node);
  });
  return group;
}

const usable = (axis, point) => (axis.log ? isPositive : isNumber)(point[axis.key]);

/** Dashed lines at the targets; their labels take a second row where they would touch. */
function targetLines(targets, x, box, rowOf) {
  return targets.map((target) =>
    drawn(
      "g",
      { "aria-hidden": "true" },
      drawn("line", { class: "target", x1: x.at(target), x2: x.at(target), y1: box.top, y2: box.bottom }),
      drawn(
        "text",
        { x: x.at(target), y: box.top - 6 - 15 * rowOf(target), "text-anchor": "middle" },
        shown(target, FORMATS.target),
      ),
    ),
  );
}

/** Another code's points, which belong to no SAE: crosses on a dashed line, with the code's name at its finest. */
function otherCode(name, points, x, y) {
  const places = points.map((point) => ({ x: x.at(point.nmse), y: y.at(point.bits_per_row) }));
  const group = drawn("g", { class: "other", "data-code": name });
  group.append(drawn("polyline", { class: "line", points: places.map((at) => `${at.x},${at.y}`).join(" ") }));
  points.forEach((point, i) => {
    const [bits, nmse] = [shown(point.bits_per_row, FORMATS.rate), shown(point.nmse, FORMATS.nmse)];
    const node = drawn(
      "g",
      {
        class: "point",
        tabindex: "0",
        role: "img",
        "aria-label": `${name}: ${bits} bits per row at NMSE ${nmse}`,
        transform: `translate(${places[i].x},${places[i].y})`,
      },
      drawn("circle", { class: "hit", r: 12 }),
      drawn("path", { class: "mark", d: "M-4,-4L4,4M-4,4L4,-4" }),
    );
    const rows = [
      ["bits per row", bits, "bits_per_row"],
      ["NMSE", nmse, "nmse"],
      ["bytes of its model", shown(point.model_bytes, FORMATS.count), "model_bytes", "rule"],
    ];
    withTip(node, () => [element("strong", {}, name), tipTable(rows)]);
    group.append(node);
  });
  group.append(drawn("text", { x: places[0].x - 8, y: places[0].y - 9, "text-anchor": "end" }, name));
  return group;
}

function drawCurves(view, hidden, width) {
  const values = (axis, more = []) => [
    ...more,
    ...SAES.flatMap((sae) =>
      list(sae.points)
        .filter((point) => usable(view.x, point) && usable(view.y, point))
        .flatMap((point) => [point[axis.key], ...list(point[axis.interval])]),
    ),
  ];
  const targets = view.targets.filter(isPositive);
  const [left, right] = [56, width - 14];
  const others = list(view.others);
  const x = scale(
    values(view.x, [...targets, ...others.map((point) => point.nmse)]),
    view.x.log,
    view.falling ? right : left,
    view.falling ? left : right,
  );
  const rows = new Map();
  for (const target of [...targets].sort((a, b) => x.at(a) - x.at(b))) {
    const taken = [...rows].filter(([other]) => Math.abs(x.at(other) - x.at(target)) < 40).map(([, row]) => row);
    rows.set(target, [0, 1, 2, 3].find((row) => !taken.includes(row)) ?? 0);
  }
  const levels = Math.max(0, ...rows.values()) + (rows.size ? 1 : 0);
  const top = 26 + 15 * levels;
  const box = { left, right, top, bottom: top + Math.round(Math.max(260, Math.min(440, 0.52 * width))), labelTop: 12 };
  const y = scale(
    values(
      view.y,
      others.map((point) => point.bits_per_row),
    ),
    view.y.log,
    box.bottom,
    box.top,
  );
  const height = box.bottom + 44;
  return drawn(
    "svg",
    { viewBox: `0 0 ${width} ${height}`, width, height, role: "group", "aria-label": view.title },
    frame(box, x, y, view.x.label, view.y.label),
    targetLines(targets, x, box, (target) => rows.get(target)),
    others.length ? otherCode("PCA", others, x, y) : null,
    SAES.map((sae, i) => (hidden.has(i) ? null : curveOf(sae, i, view, x, y))),
  );
}

const RATE = { key: "bits_per_row", interval: "bits_interval", log: true, label: "bits per row" };
const LOSS = { key: "nmse", interval: "nmse_interval", log: true, label: "NMSE, falling to the right" };
const METRIC = { key: "metric", interval: "metric_interval", log: false, label: "metric" };

/** The charts that the report has numbers for, under one legend whose buttons show and hide curves. */
function curveCharts() {
  const others = pcaPoints();
  const views = [{ title: "bits per row over NMSE", x: LOSS, y: RATE, falling: true, targets: TARGETS, others }];
  const measured = SAES.some((sae) => list(sae.points).some((point) => isNumber(point.metric)));
  if (measured) {
    views.push({
      title: "metric over bits per row",
      x: RATE,
      y: { ...METRIC, label: shown(REPORT.metric) },
      targets: [],
    });
  }
  const hidden = new Set();
  const charts = views.map((view) => responsive((width) => drawCurves(view, hidden, width)));
  const buttons = SAES.map((sae, i) => {
    const button = element(
      "button",
      { type: "button", "aria-pressed": "true" },
      swatch(i),
      element("span", {}, breakable(shown(sae.name))),
    );
    button.addEventListener("click", () => {
      if (!hidden.delete(i)) hidden.add(i);
      button.setAttribute("aria-pressed", String(!hidden.has(i)));
      hideTip();
      charts.forEach((chart) => chart.redraw());
    });
    return element("li", {}, button);
  });
  const some = SAES.some((sae) => list(sae.points).some((point) => FRONT.length && onFront(sae, point)));
  return [
    element(
      "p",
      {},
      "Each mark is a file that was written and decoded again: how many bits it takes per row, and the share of the " +
        "rows’ variance that it loses (NMSE); lower is better at the same place.",
      some ? " Filled marks are on the Pareto front: no other file is smaller and closer to the rows." : "",
      LEVEL ? ` Thin lines are ${LEVEL} intervals${TARGETS.length ? ", dashed ones the targets" : ""}.` : "",
      others.length ? " Crosses are what PCA takes, its model not counted." : "",
    ),
    SAES.length > 1 ? element("ul", { class: "legend", "aria-label": "curves shown" }, buttons) : null,
    element("figure", {}, charts[0].host),
    measured
      ? element(
          "figure",
          {},
          element("p", {}, "The metric of the decoded rows, over the bits that they take."),
          charts[1].host,
        )
      : null,
  ];
}
