// Small repairs to what the theme leaves open for people who use a keyboard or a screen reader.
(() => {
  "use strict";

  // What is wider than its box scrolls; only what has the focus scrolls by keyboard.
  const SCROLLING = [
    "div.math",
    "div.math > mjx-container",
    "div.highlight pre",
    "div.cell_output pre",
    "div.cell_output",
    ".diagram",
    ".pst-scrollable-table-container",
    "p:has(> img[src$='.svg'])",
    ".bd-article table",
  ].join(",");

  function makeScrollersFocusable() {
    for (const element of document.querySelectorAll(SCROLLING)) {
      const scrolls =
        element.scrollWidth > element.clientWidth && /auto|scroll/.test(getComputedStyle(element).overflowX);
      // The theme gives -1 to code that did not scroll when the page was opened.
      if (scrolls && element.tabIndex < 0) {
        element.tabIndex = 0;
        element.dataset.scroller = "";
      } else if (!scrolls && "scroller" in element.dataset) {
        element.removeAttribute("tabindex");
        delete element.dataset.scroller;
      }
    }
  }

  // The title in the sidebar stands outside every landmark.
  function nameTheTitle() {
    const title = document.querySelector(".bd-sidebar-primary .navbar-brand");
    const box = title && title.closest(".sidebar-primary-item");
    if (box && !box.hasAttribute("role")) {
      box.setAttribute("role", "navigation");
      box.setAttribute("aria-label", "Title page");
    }
  }

  // The bibliography is a list whose entries do not say that they are its items.
  function nameCitations() {
    for (const entry of document.querySelectorAll(".citation-list > .citation")) {
      entry.setAttribute("role", "listitem");
    }
  }

  // What folds a section of the sidebar is an arrow without words.
  function nameTheFolds() {
    for (const fold of document.querySelectorAll(".bd-sidebar-primary li > details > summary")) {
      const page = fold.closest("li").querySelector("a");
      fold.setAttribute("aria-label", `Pages below: ${page ? page.textContent.trim() : "this one"}`);
    }
  }

  // A task's box has no label of its own: its line is its label.
  function labelTasks() {
    for (const box of document.querySelectorAll("input.task-list-item-checkbox")) {
      box.setAttribute("aria-label", box.parentElement.textContent.trim() || "task");
    }
  }

  function start() {
    nameTheTitle();
    nameTheFolds();
    nameCitations();
    labelTasks();
    makeScrollersFocusable();
    // The article changes its size with the window, with the sidebar, with a box that opens and with formulas
    // that are set; what is inside may scroll from then on.
    const article = document.querySelector("article");
    if (article) {
      new ResizeObserver(makeScrollersFocusable).observe(article);
    }
    window.addEventListener("load", () => window.MathJax?.startup?.promise?.then(makeScrollersFocusable));
  }

  if (document.readyState === "loading") {
    document.addEventListener("DOMContentLoaded", start);
  } else {
    start();
  }
})();
