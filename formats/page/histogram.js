// Histograms: bars over edges that the report holds, each with its numbers in the tooltip.

const HISTOGRAMS = {
  row_bits: ["Bits by row", "How many rows take how many bits."],
  latent_bits: ["Bits by latent", "How many latents cost how much: a latent’s bits, spread over all rows."],
};

/** Edges of which all are positive: bars that begin at zero get a lower edge as wide as the next bar, in logarithms. */
function positiveEdges(edges) {
  const ratio = edges[2] > edges[1] && edges[1] > 0 ? edges[2] / edges[1] : 10;
  return edges[0] > 0 ? edges : [edges[1] / ratio, ...edges.slice(1)];
}

function drawHistogram(title, histogram, width) {
  const counts = list(histogram.counts).map((count) => (isNumber(count) ? count : 0));
  const logarithmic = Boolean(histogram.log) && list(histogram.edges).slice(1).every(isPositive);
  const edges = logarithmic ? positiveEdges(histogram.edges) : histogram.edges;
  const box = { left: 56, right: width - 14, top: 28, bottom: 218, labelTop: 12 };
  const x = scale(edges, logarithmic, box.left, box.right, { pad: 0 });
  const most = Math.max(1, ...counts);
  const y = {
    at: (count) => box.bottom - (count / most) * (box.bottom - box.top),
    ticks: linearTicks(0, most, 4).filter(Number.isInteger),
  };
  const total = counts.reduce((sum, count) => sum + count, 0);
  const unit = histogram.unit ?? "";
  const bins = counts.map((count, i) => {
    const [from, to] = [x.at(edges[i]), x.at(edges[i + 1])];
    const gap = to - from > 4 ? 1 : 0;
    const bin = drawn(
      "g",
      { class: "bin" },
      drawn("rect", {
        class: "bar",
        x: from,
        y: y.at(count),
        width: Math.max(to - from - gap, 0.5),
        height: box.bottom - y.at(count),
      }),
      drawn("rect", {
        class: "hit",
        x: from,
        y: box.top,
        width: Math.max(to - from, 0.5),
        height: box.bottom - box.top,
      }),
    );
    const content = () => [
      tipTable([
        [unit, `${shown(histogram.edges[i], FORMATS.bits)} to ${shown(histogram.edges[i + 1], FORMATS.bits)}`, "range"],
        ["count", shown(count, FORMATS.count), "count"],
        ["share", total ? shown(count / total, FORMATS.percent) : DASH, "share"],
      ]),
    ];
    withTip(bin, content);
    return { bin, content };
  });
  const height = box.bottom + 44;
  const svg = drawn(
    "svg",
    {
      viewBox: `0 0 ${width} ${height}`,
      width,
      height,
      role: "group",
      tabindex: "0",
      "aria-label": `${title}: arrow keys move from bar to bar`,
    },
    frame(box, x, y, unit, "count", { xGrid: false }),
    bins.map(({ bin }) => bin),
  );
  walk(svg, bins);
  return svg;
}

/** Arrow keys move through the bars; one stop of the Tab key for all of them. */
function walk(svg, bins) {
  let current = -1;
  const go = (to) => {
    bins[current]?.bin.classList.remove("current");
    current = to;
    if (!bins[current]) return hideTip();
    bins[current].bin.classList.add("current");
    return showTip(bins[current].bin, bins[current].content);
  };
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step || !bins.length) return;
    event.preventDefault();
    go(Math.max(0, Math.min(bins.length - 1, current + step)));
  });
  svg.addEventListener("blur", () => go(-1));
}

function histogramFigures(histograms) {
  const figures = entries(histograms)
    .filter(([, histogram]) => {
      const edges = list(histogram?.edges);
      return edges.length > 1 && edges.length === list(histogram?.counts).length + 1 && edges.every(isNumber);
    })
    .map(([key, histogram]) => {
      const [title, words] = HISTOGRAMS[key] ?? [key, ""];
      const chart = responsive((width) => drawHistogram(title, histogram, width));
      return element(
        "figure",
        { "data-histogram": key },
        element("h3", {}, title),
        words ? element("p", {}, words) : null,
        chart.host,
      );
    });
  return figures.length ? element("div", { class: "histograms" }, figures) : null;
}
