// Keeps the live part of a page up to date. Without it the page is as good as when it was loaded.
"use strict";

for (const live of document.querySelectorAll("[data-live]")) {
  let source;
  const show = (event, last) => {
    const selected = document.getSelection();
    if (selected && !selected.isCollapsed && live.contains(selected.anchorNode)) return; // somebody copies
    if (!last && live.querySelector(":is(a, button):hover")) return; // or is about to press
    const part = document.createElement("template");
    part.innerHTML = event.data;
    const renewed = part.content.querySelector("[data-live]");
    if (!renewed) return;
    const badge = document.getElementById("badge");
    if (badge && renewed.dataset.letters >= 0) {
      badge.textContent = renewed.dataset.letters;
      badge.hidden = renewed.dataset.letters === "0";
    }
    const focused = [...live.querySelectorAll("a, button, input")].indexOf(document.activeElement);
    live.replaceChildren(...renewed.childNodes);
    if (focused >= 0) live.querySelectorAll("a, button, input")[focused]?.focus({ preventScroll: true });
  };
  const open = () => {
    source = new EventSource(live.dataset.live);
    source.addEventListener("part", (event) => show(event));
    source.addEventListener("last", (event) => {
      show(event, true);
      live.removeAttribute("data-live");
      source.close();
      source = undefined;
    });
  };
  open();
  // A page that nobody sees asks for nothing.
  document.addEventListener("visibilitychange", () => {
    if (!live.hasAttribute("data-live")) return;
    source?.close();
    if (!document.hidden) open();
  });
}
