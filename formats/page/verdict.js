// The verdict at each target: which SAE needs the fewest bits, and how far the others are.

/** Bits and interval by which `name` needs more than `best` (a difference is b's bits less a's), and from how many rows
 * on `best` is the shorter of the two with decoders counted. */
function difference(verdict, name, best) {
  for (const { a, b, bits, interval, rows_to_break_even: rows } of list(verdict.differences).filter(Boolean)) {
    if (a === best && b === name) return { bits, interval, rows };
    if (a === name && b === best) {
      const turned = (value) => (isNumber(value) ? -value : null);
      return { bits: turned(bits), interval: list(interval).map(turned).reverse() };
    }
  }
  return null;
}

/** A break-even as a whole number of rows; null where there is none. */
const wholeRows = (rows) => (isNumber(rows) ? Math.ceil(rows) : null);

function oneVerdict(sae, target) {
  const found = atTarget(sae.at, target);
  if (!isNumber(found?.bits_per_row)) return unreached(target);
  const total = isNumber(found.total_bits_per_row)
    ? ` With the SAE’s decoder counted, it needs ${shown(found.total_bits_per_row, FORMATS.rate)} bits per row.`
    : "";
  const [raw, pca] = [found.rows_to_break_even_raw, found.rows_to_break_even_pca].map(wholeRows);
  const others = [
    raw === null ? null : `the raw rows from ${shown(raw)} rows on`,
    pca === null ? null : `PCA’s bytes and its model from ${shown(pca)} rows on`,
  ].filter(Boolean);
  const rows = others.length ? ` File and decoder are smaller than ${others.join(", and than ")}.` : "";
  const bits = withInterval(found.bits_per_row, found.interval, FORMATS.rate);
  return element("p", {}, ...names([sae.name]), ` needs ${bits} bits per row.${total}${rows}`);
}

function comparedVerdict(verdict, target) {
  const best = verdict.mdl;
  if (!best) return element("p", {}, "No SAE reaches it.");
  const sae = SAES.find((one) => one.name === best);
  const found = atTarget(sae?.at, target) ?? {};
  const text = ["The MDL-SAE is ", ...names([best])];
  text.push(`, at ${withInterval(found.bits_per_row, found.interval, FORMATS.rate)} bits per row.`);
  const ties = list(verdict.ties).filter((name) => name !== best);
  if (ties.length) {
    text.push(" It is not told apart from ", ...names(ties), ": the interval of the difference holds zero.");
  }
  const others = SAES.filter((one) => one.name !== best && !ties.includes(one.name))
    .map((one) => ({ name: one.name, ...difference(verdict, one.name, best) }))
    .filter(({ bits }) => isNumber(bits))
    .sort((a, b) => a.bits - b.bits);
  if (others.length) {
    const [next] = others;
    const bits = withInterval(next.bits, next.interval, FORMATS.rate);
    text.push(" Next is ", ...names([next.name]), `, which needs ${bits} bits per row more.`);
  }
  const steps = list(verdict.shortest_from_rows).filter((one) => one && isNumber(one.from_rows));
  const always = steps.length === 1 && steps[0].name === verdict.mdl_with_sae;
  if (verdict.mdl_with_sae === best) text.push(" It stays the best with its decoder’s bits counted");
  else if (verdict.mdl_with_sae) {
    text.push(" With the decoder’s bits counted, it is ", ...names([verdict.mdl_with_sae]));
  }
  const tied = list(verdict.ties_with_sae).filter((name) => name !== verdict.mdl_with_sae);
  if (verdict.mdl_with_sae && tied.length) text.push(", and not told apart from ", ...names(tied));
  if (verdict.mdl_with_sae) text.push(always && !tied.length ? ", for any number of rows." : ".");
  if (steps.length > 1) text.push(...shortestByRows(steps));
  text.push(...tooHard(target));
  return element("p", {}, ...text);
}

/** Which SAEs some resamples put out of reach of a target: their intervals have no upper end. */
function tooHard(target) {
  const missed = SAES.map((sae) => ({ name: sae.name, share: atTarget(sae.at, target)?.not_reached }))
    .filter(({ share }) => isNumber(share) && share > 0);
  if (!missed.length) return [];
  return [
    " A dash for the upper end of an interval says that there is none: the rows of some resamples are too hard for every file (",
    ...missed.flatMap(({ name, share }, i) => [
      i === 0 ? "" : ", ",
      `${(100 * share).toFixed(1)} % of them for `,
      ...names([name]),
    ]),
    ").",
  ];
}

/** Which SAE is the shortest from how many rows on, as a sentence. */
function shortestByRows(steps) {
  return [
    " By the number of rows, decoders counted, the shortest is ",
    ...steps.flatMap(({ from_rows: from, name }, i) => [
      i === 0 ? "" : i === steps.length - 1 ? " and " : ", ",
      ...names([name]),
      i === 0 ? " at first," : ` from ${shown(wholeRows(from))} rows on`,
    ]),
    ".",
  ];
}

function targetTable(verdict, target) {
  const reached = SAES.map((sae) => ({ name: sae.name, ...atTarget(sae.at, target) })).filter((at) =>
    isNumber(at.bits_per_row),
  );
  if (!reached.length) return null;
  const apart = reached.map(({ name }) => difference(verdict, name, verdict.mdl) ?? {});
  return sortable(
    `SAEs at NMSE ${target}`,
    withValues([
      nameColumn(reached.map((at) => at.name)),
      column(
        "bits_per_row",
        "bits per row",
        FORMATS.rate,
        reached.map((at) => at.bits_per_row),
        reached.map((at) => at.interval),
      ),
      column(
        "more",
        "more than the MDL-SAE",
        FORMATS.rate,
        apart.map((d) => d.bits),
        apart.map((d) => d.interval),
      ),
      column(
        "total",
        "with the decoder",
        FORMATS.rate,
        reached.map((at) => at.total_bits_per_row),
      ),
      column(
        "even",
        "even with\nraw rows",
        FORMATS.count,
        reached.map((at) => wholeRows(at.rows_to_break_even_raw)),
      ),
      column(
        "even_pca",
        "even with\nPCA",
        FORMATS.count,
        reached.map((at) => wholeRows(at.rows_to_break_even_pca)),
      ),
      column(
        "even_mdl",
        "MDL-SAE\nahead from",
        FORMATS.count,
        apart.map((d) => wholeRows(d.rows)),
      ),
    ]),
  );
}

/** Who does not reach a target, and why. */
function unreached(target) {
  const told = SAES.map((sae) => ({ name: sae.name, ...atTarget(sae.at, target) }))
    .filter((at) => !isNumber(at.bits_per_row))
    .flatMap(({ name, missing }) => [...names([name]), ` does not reach it${missing ? `: ${missing}` : ""}. `]);
  return told.length ? element("p", {}, ...told) : null;
}

function verdicts() {
  if (!TARGETS.length) return [];
  const several = SAES.length > 1;
  return [
    element("h2", {}, TARGETS.length > 1 ? "At each target" : "At the target"),
    several
      ? element(
          "p",
          {},
          "The MDL-SAE is the one that describes the rows in the fewest bits at the same NMSE. “Even with” is the " +
            "number of rows from which on file and decoder are smaller than the raw rows, or than PCA’s bytes and " +
            "model, a dash where they never are; “ahead from” is the number from which on the MDL-SAE and its decoder " +
            "are smaller than the other SAE’s.",
        )
      : null,
    ...TARGETS.flatMap((target) => {
      const verdict = atTarget(REPORT.at, target) ?? {};
      return [
        element("h3", {}, `NMSE ${shown(target, FORMATS.target)}`),
        several ? comparedVerdict(verdict, target) : SAES.map((sae) => oneVerdict(sae, target)),
        several ? [targetTable(verdict, target), unreached(target)] : null,
      ];
    }),
  ].flat(2);
}
