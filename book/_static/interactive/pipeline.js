// The pipeline of chapter 2.3: one sentence, followed step by step through a model of each family.
//
// data: families [{name, stages [stage]}]. A stage has a title, what it says, the shape of what is there, and rows: the
// pieces of text, or the tokens that may come next. Beside them stand `ids`, or `shares` from 0 to 1 with a bar each, or
// `weights`, a row of shares for each of the `queries`, of which a slider chooses one.
bookFigures.register("pipeline", (data, box) => {
  "use strict";
  const { element, slider, choice, button, speaker, table, bar, list, isText, isNumber, isRow, format } = bookFigures;

  const families = list(data, "families", (family) => isText(family?.name));
  for (const { stages } of families.map((family) => ({ stages: list(family, "stages", isStage) }))) {
    for (const stage of stages) {
      const { length } = list(stage, "rows", isText);
      if ("ids" in stage) list(stage, "ids", isNumber, length);
      if ("shares" in stage) list(stage, "shares", isNumber, length);
      if ("weights" in stage) list(stage, "weights", isRow(length), list(stage, "queries", isText).length);
    }
  }

  function isStage(stage) {
    return [stage?.title, stage?.says, stage?.shape].every(isText);
  }

  let at = 0;
  const model = choice({ name: "family", label: "model", options: families.map((f) => f.name), start: 0, onInput: begin });
  const back = button("One step back", () => go(-1));
  const next = button("One step on", () => go(1));
  const where = element("span", { class: "where" });
  const stepper = element("div", { class: "stepper", role: "group", "aria-label": "Step" }, back, where, next);
  const title = element("p", { class: "step" });
  const says = element("p", { class: "says" });
  const query = element("div", { class: "query" });
  const place = element("div", { class: "place" });
  const { node: spoken, say } = speaker();
  let chosen = null; // the slider of an attention stage

  const stages = () => families[model.value()].stages;

  function begin() {
    at = 0;
    draw();
  }

  function go(by) {
    const wanted = Math.max(0, Math.min(stages().length - 1, at + by));
    if (wanted !== at) {
      at = wanted;
      draw();
    }
  }

  // The arrows do what the buttons do, while one of them has the focus.
  stepper.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by && !event.altKey && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      go(by);
      (by < 0 ? back : next).focus();
    }
  });

  function draw() {
    const stage = stages()[at];
    chosen = null;
    if (stage.weights) {
      const { queries } = stage;
      const values = queries.map((_, n) => n);
      const start = queries.length - 1;
      chosen = slider({ name: "query", label: "of the token", values, start, shown: (n) => queries[n], onInput: fill });
    }
    query.replaceChildren(...(chosen ? [chosen.node] : []));
    where.textContent = `${at + 1} of ${stages().length}`;
    back.setAttribute("aria-disabled", at === 0);
    next.setAttribute("aria-disabled", at === stages().length - 1);
    title.replaceChildren(element("strong", {}, stage.title), " ", element("code", {}, stage.shape));
    says.textContent = stage.says;
    fill();
    say(`Step ${at + 1} of ${stages().length}: ${stage.title}, ${stage.shape}. ${stage.says}`);
  }

  function fill() {
    const { rows, ids, shares, weights } = stages()[at];
    const part = chosen ? weights[chosen.value()] : shares;
    const columns = ["token", ...(ids ? ["id"] : []), ...(part ? ["share", chosen ? "weight" : "probability"] : [])];
    const shown = table(stages()[at].title, columns);
    shown.fill(
      rows.map((piece, n) => ({
        cells: [
          element("code", {}, piece),
          ...(ids ? [String(ids[n])] : []),
          ...(part ? [bar(part[n]), format(part[n], 2)] : []),
        ],
      })),
    );
    place.replaceChildren(shown.node);
  }

  draw();
  box.classList.add("pipeline");
  box.append(element("div", { class: "controls" }, model.node, stepper), title, says, query, place, spoken);
});
