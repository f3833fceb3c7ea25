// The verdict at each target: which SAE needs the fewest bits, and how far the others are.

/** Bits and interval by which `name` needs more than `best` (a difference is b's bits less a's). */
function difference(verdict, name, best) {
  for (const { a, b, bits, interval } of list(verdict.differences).filter(Boolean)) {
    if (a === best && b === name) return { bits, interval };
    if (a === name && b === best) {
      const turned = (value) => (isNumber(value) ? -value : null);
      return { bits: turned(bits), interval: list(interval).map(turned).reverse() };
    }
  }
  return null;
}

/** The first whole number of rows at which file and decoder are smaller than raw rows; null where it is not known. */
const breakEven = ({ rows_to_break_even_raw: rows }) => (isNumber(rows) ? Math.ceil(rows) : null);

function oneVerdict(sae, target) {
  const found = atTarget(sae.at, target);
  if (!found || !isNumber(found.bits_per_row)) {
    return element("p", {}, ...names([sae.name]), ` does not reach it${found?.missing ? `: ${found.missing}` : ""}.`);
  }
  const total = isNumber(found.total_bits_per_row)
    ? ` With the SAE’s decoder counted, it needs ${shown(found.total_bits_per_row, FORMATS.rate)} bits per row.`
    : "";
  const even = breakEven(found);
  const rows = even === null ? "" : ` File and decoder are smaller than the raw rows from ${shown(even)} rows on.`;
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
  if (verdict.mdl_with_sae === best) text.push(" It stays the best with its decoder’s bits counted.");
  else if (verdict.mdl_with_sae) {
    text.push(" With the decoder’s bits counted, it is ", ...names([verdict.mdl_with_sae]), ".");
  }
  return element("p", {}, ...text);
}

function targetTable(verdict, target) {
  const found = SAES.map((sae) => atTarget(sae.at, target) ?? {});
  const apart = SAES.map((sae) => difference(verdict, sae.name, verdict.mdl) ?? {});
  return sortable(
    `SAEs at NMSE ${target}`,
    withValues([
      nameColumn(SAES.map((sae) => sae.name)),
      column(
        "bits_per_row",
        "bits per row",
        FORMATS.rate,
        found.map((at) => at.bits_per_row),
        found.map((at) => at.interval),
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
        found.map((at) => at.total_bits_per_row),
      ),
      column("even", "rows to break even", FORMATS.count, found.map(breakEven)),
      {
        ...column(
          "missing",
          "not reached",
          FORMATS.value,
          found.map((at) => at.missing),
        ),
        long: true,
      },
    ]),
  );
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
          "The MDL-SAE is the one that describes the rows in the fewest bits at the same NMSE. Rows to break even: " +
            "from how many rows on the files, SAE decoder included, are smaller than the raw rows.",
        )
      : null,
    ...TARGETS.flatMap((target) => {
      const verdict = atTarget(REPORT.at, target) ?? {};
      return [
        element("h3", {}, `NMSE ${shown(target, FORMATS.target)}`),
        several ? comparedVerdict(verdict, target) : SAES.map((sae) => oneVerdict(sae, target)),
        several ? targetTable(verdict, target) : null,
      ];
    }),
  ].flat();
}
