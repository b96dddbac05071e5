// The text box of chapter 2.2: a sentence, cut four ways, each token with its id.
//
// data: examples [text], characters text, merges ["left right"], wordpiece [token], unigram [piece], scores [number].
// They are the vocabularies that the notebook trained. The four functions below are those of llm_core/text: characters,
// bpe, wordpiece and unigram, line for line, and tests/book/test_interactive.py holds their ids to Python's.
bookFigures.register("tokenizer", (data, box) => {
  "use strict";
  const { element, choice, speaker, list, isText, isNumber } = bookFigures;

  const examples = list(data, "examples", isText);
  if (!isText(data.characters) || data.characters === "") throw new Error("characters are missing");
  const isMerge = (line) => isText(line) && line.split(" ").length === 2;
  const numbered = (tokens) => new Map(tokens.map((token, id) => [token, id]));
  const visible = (text) => text.replaceAll(" ", "␣").replaceAll("\n", "⏎").replaceAll("\t", "⇥");

  // --- characters ---

  const characters = numbered([...data.characters]);

  function cutCharacters(text) {
    return [...text].map((character) => {
      const id = characters.get(character);
      return id === undefined ? { shown: visible(character), unknown: true } : { shown: visible(character), id };
    });
  }

  // --- byte-pair encoding ---

  const merges = list(data, "merges", isMerge);
  const range = (first, last) => Array.from({ length: last - first + 1 }, (_, n) => first + n);
  const printable = [...range(0x21, 0x7e), ...range(0xa1, 0xac), ...range(0xae, 0xff)];
  const others = range(0, 255).filter((byte) => !printable.includes(byte));
  const letter = new Map([...printable.map((byte) => [byte, byte]), ...others.map((byte, n) => [byte, 256 + n])]);
  const inAlphabet = (bytes) => [...bytes].map((byte) => String.fromCodePoint(letter.get(byte)));
  const byteOf = new Map([...letter].map(([byte, code]) => [String.fromCodePoint(code), byte]));

  const ranks = numbered(merges);
  const bpeIds = numbered([...new Set([...byteOf.keys(), ...merges.map((line) => line.replace(" ", ""))])]);
  // GPT-2's pattern. JavaScript's \s is not quite Unicode's white space.
  const gpt2 = new RegExp(
    String.raw`'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+` +
      String.raw`|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+`,
    "gu",
  );

  function bpePiece(piece) {
    const tokens = inAlphabet(new TextEncoder().encode(piece));
    while (tokens.length > 1) {
      let [first, at] = [Infinity, -1]; // the earliest merge; where it fits several times, the leftmost place
      for (let i = 0; i + 1 < tokens.length; i++) {
        const rank = ranks.get(`${tokens[i]} ${tokens[i + 1]}`) ?? Infinity;
        if (rank < first) [first, at] = [rank, i];
      }
      if (at < 0) break;
      tokens.splice(at, 2, tokens[at] + tokens[at + 1]);
    }
    return tokens;
  }

  // A token's bytes as text; where they are a part of a character only, as hexadecimal numbers.
  function fromAlphabet(token) {
    const bytes = Uint8Array.from([...token].map((character) => byteOf.get(character)));
    try {
      return visible(new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes));
    } catch {
      return [...bytes].map((byte) => byte.toString(16).toUpperCase().padStart(2, "0")).join(" ");
    }
  }

  function cutBpe(text) {
    const tokens = (text.match(gpt2) ?? []).flatMap(bpePiece);
    return tokens.map((token) => ({ shown: fromAlphabet(token), id: bpeIds.get(token) }));
  }

  // --- WordPiece ---

  const [UNK, LONGEST_WORD] = ["[UNK]", 100];
  const wordpiece = numbered(list(data, "wordpiece", isText));
  if (!wordpiece.has(UNK)) throw new Error(`${UNK} is missing`);
  const CJK =
    /[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u{20000}-\u{2a6df}\u{2a700}-\u{2b81f}\u{2b920}-\u{2ceaf}\u{2f800}-\u{2fa1f}]/gu;
  const mark = /[\p{P}!-/:-@[-`{-~]/u;

  function words(text) {
    const normal = text
      .replace(/[\t\n\r]/g, " ")
      .replace(/[\ufffd\p{Cc}\p{Cf}\p{Co}\p{Cs}]/gu, "")
      .replace(/\p{White_Space}/gu, " ")
      .replace(CJK, " $& ")
      .normalize("NFD")
      .replace(/\p{Mn}/gu, "")
      .replaceAll("Σ", "σ")
      .toLowerCase();
    const found = [];
    for (const run of normal.split(" ")) {
      let word = "";
      for (const character of run) {
        if (mark.test(character)) {
          found.push(word, character);
          word = "";
        } else {
          word += character;
        }
      }
      found.push(word);
    }
    return found.filter((word) => word !== "");
  }

  function pieces(word) {
    const letters = [...word];
    if (letters.length > LONGEST_WORD) return [UNK];
    const found = [];
    for (let start = 0; start < letters.length; ) {
      let end = letters.length;
      const piece = () => (start > 0 ? "##" : "") + letters.slice(start, end).join("");
      while (end > start && !wordpiece.has(piece())) end--;
      if (end === start) return [UNK];
      found.push(piece());
      start = end;
    }
    return found;
  }

  function cutWordPiece(text) {
    const tokens = words(text).flatMap(pieces);
    return tokens.map((token) => ({ shown: token, id: wordpiece.get(token), unknown: token === UNK }));
  }

  // --- Unigram ---

  const unigram = list(data, "unigram", isText);
  const numbers = list(data, "scores", isNumber, unigram.length);
  const unigramIds = numbered(unigram);
  const scores = new Map(unigram.map((piece, id) => [piece, numbers[id]]));
  const lowest = Math.min(...numbers) - 10;

  function bestCut(word) {
    const letters = [...word];
    const best = [0, ...letters.map(() => -Infinity)]; // to each place: the score, and where the last piece begins
    const begins = [0, ...letters.map(() => 0)];
    for (let end = 1; end <= letters.length; end++) {
      for (let start = 0; start < end; start++) {
        const alone = end === start + 1 ? lowest : -Infinity;
        const score = best[start] + (scores.get(letters.slice(start, end).join("")) ?? alone);
        if (score > best[end]) [best[end], begins[end]] = [score, start];
      }
    }
    const found = [];
    for (let end = letters.length; end > 0; end = begins[end]) found.unshift(letters.slice(begins[end], end).join(""));
    return found;
  }

  function cutUnigram(text) {
    let spaced = text.replaceAll(" ", "▁");
    if (spaced !== "" && !spaced.startsWith("▁")) spaced = `▁${spaced}`;
    return (spaced.match(/▁[^▁]*|[^▁]+/g) ?? []).flatMap((word) => {
      const found = [];
      for (const piece of bestCut(word)) {
        const id = unigramIds.get(piece) ?? 0;
        const last = found.at(-1);
        if (id > 0 || last === undefined || last.id !== 0) {
          found.push({ shown: visible(id > 0 ? piece : unigram[0]), id, unknown: id === 0 });
        }
      }
      return found;
    });
  }

  // --- the figure ---

  const ways = [
    { name: "characters", title: "Characters", cut: cutCharacters },
    { name: "bpe", title: "BPE on bytes", cut: cutBpe },
    { name: "wordpiece", title: "WordPiece", cut: cutWordPiece },
    { name: "unigram", title: "Unigram", cut: cutUnigram },
  ];
  const shorter = (text) => (text.length > 28 ? `${text.slice(0, 27)}…` : text);
  const chosen = choice({ name: "example", label: "example", options: examples.map(shorter), start: 0, onInput: fill });
  const input = element("textarea", { name: "text", rows: 2, maxlength: 400, spellcheck: "false", autocomplete: "off" });
  input.addEventListener("input", draw);
  const typed = element("label", { class: "typed" }, "your text", input);
  const { node: spoken, say } = speaker();
  const places = ways.map(({ name, title }) => {
    const count = element("span", { class: "count", "data-value": name });
    const tokens = element("p", { class: "tokens", "data-way": name });
    return { count, tokens, node: element("div", { class: "way" }, element("p", {}, element("strong", {}, title), " ", count), tokens) };
  });

  function chip({ shown, id, unknown = false }) {
    const number = id === undefined ? "none" : String(id);
    return element(
      "span",
      { class: unknown ? "token unknown" : "token" },
      element("span", { class: "piece" }, shown),
      element("span", { class: "id" }, number),
    );
  }

  function fill() {
    input.value = examples[chosen.value()];
    draw();
  }

  function draw() {
    const heard = ways.map(({ title, cut }, n) => {
      const tokens = cut(input.value);
      places[n].tokens.replaceChildren(...tokens.map(chip));
      places[n].count.textContent = tokens.length === 1 ? "1 token" : `${tokens.length} tokens`;
      return `${title}: ${tokens.length}`;
    });
    say(`Tokens: ${heard.join(", ")}.`);
  }

  fill();
  box.classList.add("tokenizer");
  box.append(element("div", { class: "controls" }, chosen.node, typed), ...places.map(({ node }) => node), spoken);
});
