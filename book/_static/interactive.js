// Figures that a reader can play with: what all kinds of them share.
//
// bookext.interactive writes a figure's data into the page; interactive/<kind>.js says how its kind is drawn, with
// `bookFigures.register(kind, draw)`. `draw(data, box)` fills an empty box. Only when it has, the static image is
// hidden: data that it cannot draw, or a browser that lacks something, leave the image where it is.
//
// Every number here is computed from the notebook's own; tests/book/test_interactive.py holds what is shown against
// PyTorch. Controls are the browser's own, so the keyboard and screen readers know them.
const bookFigures = (() => {
  "use strict";

  // --- the page ------------------------------------------------------------------------------------------------

  let made = 0; // so that every control has an id of its own

  // An element with attributes and children. `true` is an attribute without a value, `false` is none.
  function element(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value !== false) node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children);
    return node;
  }

  // Text in which `_x_` is a variable and `_x|y_` one with an index: "divided by √_d|k_".
  function text(words) {
    const parts = words.split(/_([^_]+)_/).map((part, index) => {
      if (index % 2 === 0) return part;
      const [letter, low] = part.split("|");
      return element("var", {}, letter, ...(low ? [element("sub", {}, low)] : []));
    });
    return element("span", {}, ...parts);
  }

  function register(kind, draw) {
    for (const place of document.querySelectorAll(`.interactive[data-kind="${kind}"]`)) {
      const box = element("div", { class: "interactive-box" });
      try {
        draw(JSON.parse(place.querySelector("script").textContent), box);
      } catch (error) {
        console.warn(`The interactive figure "${kind}" stays a picture: ${error.message}`);
        continue;
      }
      place.append(box);
      place.closest("figure").classList.add("is-interactive");
    }
  }

  // --- controls ------------------------------------------------------------------------------------------------

  // A slider over a list of values. `shown(value)` is what one reads, and hears.
  function slider({ name, label, values, start, shown = String, onInput }) {
    const id = `interactive-${++made}`;
    const input = element("input", { type: "range", id, name, min: 0, max: values.length - 1, step: 1 });
    const reading = element("span", { class: "reading" });
    const follow = () => {
      reading.textContent = shown(values[input.valueAsNumber]);
      input.setAttribute("aria-valuetext", reading.textContent);
    };
    // The nearest value, should the notebook's own not be one of the list.
    const distance = (value) => Math.abs(value - start);
    input.value = values.reduce((best, value, n) => (distance(value) < distance(values[best]) ? n : best), 0);
    follow();
    input.addEventListener("input", () => {
      follow();
      onInput();
    });
    const node = element("div", { class: "control" }, element("label", { for: id }, text(label)), input, reading);
    return { node, value: () => values[input.valueAsNumber] };
  }

  function checkbox({ name, label, onInput }) {
    const id = `interactive-${++made}`;
    const input = element("input", { type: "checkbox", id, name });
    input.addEventListener("input", onInput);
    const node = element("div", { class: "control" }, input, element("label", { for: id }, text(label)));
    return { node, value: () => input.checked };
  }

  function choice({ name, label, options, start, onInput }) {
    const id = `interactive-${++made}`;
    const select = element("select", { id, name });
    select.append(...options.map((option, n) => element("option", { value: n, selected: n === start }, option)));
    select.addEventListener("input", onInput);
    const node = element("div", { class: "control" }, element("label", { for: id }, text(label)), select);
    return { node, value: () => select.selectedIndex };
  }

  function button(label, onClick) {
    const node = element("button", { type: "button" }, label);
    node.addEventListener("click", onClick);
    return node;
  }

  // Two buttons that go through steps, one at a time. `count()` is how many there are, `value()` the one at hand, from
  // 0; `reset()` begins again without calling `onStep`.
  function stepper({ back, next, count, onStep }) {
    let at = 0;
    const where = element("span", { class: "where" });
    const buttons = [button(back, () => go(-1)), button(next, () => go(1))];
    const node = element("div", { class: "stepper", role: "group", "aria-label": "Step" }, buttons[0], where, buttons[1]);

    function show() {
      where.textContent = `${at + 1} of ${count()}`;
      // Not `disabled`: a button that loses the focus takes the keyboard's place on the page with it.
      buttons[0].setAttribute("aria-disabled", at === 0);
      buttons[1].setAttribute("aria-disabled", at === count() - 1);
    }

    function go(by) {
      const wanted = Math.max(0, Math.min(count() - 1, at + by));
      if (wanted === at) return;
      at = wanted;
      show();
      onStep();
    }

    function reset() {
      at = 0;
      show();
    }

    // The arrows do what the buttons do, while one of them has the focus.
    node.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (by && !event.altKey && !event.ctrlKey && !event.metaKey) {
        event.preventDefault();
        go(by);
        buttons[by < 0 ? 0 : 1].focus();
      }
    });
    reset();
    return { node, value: () => at, reset };
  }

  // A few named numbers: readouts({variance: "variance"}) and then set("variance", "1.0").
  function readouts(labels) {
    const values = {};
    const node = element("div", { class: "readouts" });
    for (const [name, label] of Object.entries(labels)) {
      values[name] = element("strong", { "data-value": name });
      node.append(element("span", {}, text(label), ": ", values[name]));
    }
    return { node, set: (name, value) => (values[name].textContent = value) };
  }

  // A sentence for screen readers, spoken once the reader has come to rest: a slider that is dragged would talk
  // without end.
  function speaker() {
    const node = element("p", { class: "visually-hidden", "aria-live": "polite" });
    let waiting = 0;
    const say = (words) => {
      clearTimeout(waiting);
      waiting = setTimeout(() => (node.textContent = words), 500);
    };
    return { node, say };
  }

  // A table of the given columns; a row's first cell is its head. `caption` is for screen readers. The column of the
  // bars is called "share".
  function table(caption, columns) {
    const body = element("tbody");
    const head = columns.map((column) => {
      return element("th", { scope: "col", class: column === "share" ? "share" : false }, text(column));
    });
    const node = element(
      "table",
      {},
      element("caption", { class: "visually-hidden" }, caption),
      element("thead", {}, element("tr", {}, ...head)),
      body,
    );
    const row = ({ cells: [first, ...rest], kind = "" }) => {
      const others = rest.map((cell) => element("td", {}, cell));
      return element("tr", { class: kind }, element("th", { scope: "row" }, first), ...others);
    };
    const fill = (rows) => body.replaceChildren(...rows.map(row));
    return { node, fill };
  }

  // A bar that fills a share of its room, in an outline of what was there before, if that is more. The number stands
  // beside it, so the bar is hidden from screen readers.
  function bar(share, outline = 0) {
    const part = (kind, size) => {
      const node = element("span", { class: kind });
      node.style.inlineSize = `${(100 * Math.max(0, Math.min(1, size))).toFixed(2)}%`;
      return node;
    };
    const parts = [part("filled", share), ...(outline > share ? [part("outline", outline)] : [])];
    return element("span", { class: "bar", "aria-hidden": true }, ...parts);
  }

  // --- numbers -------------------------------------------------------------------------------------------------

  // A number as text, with a true minus sign, and never "-0.00".
  function format(x, digits) {
    if (x === -Infinity) return "−∞";
    const words = x.toFixed(digits);
    return Number(words) === 0 ? words.replace("-", "") : words.replace("-", "−");
  }

  // As llm_core.layers.attention.softmax: the largest is taken off first, and where all are -∞ all weights are 0.
  function softmax(scores) {
    const peak = Math.max(...scores);
    if (peak === -Infinity) return scores.map(() => 0);
    const raised = scores.map((score) => Math.exp(score - peak));
    const sum = raised.reduce((total, x) => total + x, 0);
    return raised.map((x) => x / sum);
  }

  // In nats. What has probability 0 adds nothing.
  function entropy(weights) {
    return weights.reduce((total, w) => total - (w > 0 ? w * Math.log(w) : 0), 0);
  }

  // As torch.var: divided by one less than their number.
  function variance(numbers) {
    const mean = numbers.reduce((total, x) => total + x, 0) / numbers.length;
    return numbers.reduce((total, x) => total + (x - mean) ** 2, 0) / (numbers.length - 1);
  }

  function dot(a, b) {
    return a.reduce((total, x, n) => total + x * b[n], 0);
  }

  // --- data ----------------------------------------------------------------------------------------------------

  // The data of a figure are looked at once, before anything is drawn from them.
  function list(data, name, fits, length = null) {
    const found = data?.[name];
    if (!Array.isArray(found) || found.length === 0 || !found.every(fits)) {
      throw new Error(`${name} is missing, or not what it should be`);
    }
    if (length !== null && found.length !== length) throw new Error(`${name}: ${found.length} instead of ${length}`);
    return found;
  }

  const isText = (x) => typeof x === "string";
  const isNumber = (x) => typeof x === "number" && Number.isFinite(x);
  const isRow = (length, fits = isNumber) => (x) => Array.isArray(x) && x.length === length && x.every(fits);

  return {
    register, element, text, slider, checkbox, choice, button, stepper, readouts, speaker, table, bar,
    format, softmax, entropy, variance, dot, list, isText, isNumber, isRow,
  };
})();
