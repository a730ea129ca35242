// Keeps the live part of a page up to date. Without it the page is as good as when it was loaded.
"use strict";

for (const live of document.querySelectorAll("[data-live]")) {
  const again = 3000, address = live.dataset.live, stale = document.getElementById("stale");
  let source, part, last = false;
  const isUsed = () => {
    const selected = document.getSelection();
    if (selected && !selected.isCollapsed && live.contains(selected.anchorNode)) return true; // somebody copies
    return !last && live.querySelector(":is(a, button):hover"); // or is about to press
  };
  const show = () => {
    if (part === undefined || isUsed()) return;
    const template = document.createElement("template");
    template.innerHTML = part;
    part = undefined;
    const renewed = template.content.querySelector("[data-live]");
    if (!renewed) return;
    const badge = document.getElementById("badge");
    if (badge) {
      badge.textContent = renewed.dataset.letters;
      badge.hidden = !renewed.dataset.letters;
    }
    const focused = [...live.querySelectorAll("a, button, input")].indexOf(document.activeElement);
    live.replaceChildren(...renewed.childNodes);
    if (focused >= 0) live.querySelectorAll("a, button, input")[focused]?.focus({ preventScroll: true });
  };
  const close = () => {
    source?.close();
    source = undefined;
  };
  const open = () => {
    if (source || last || document.hidden) return; // a page that nobody sees asks for nothing
    source = new EventSource(address);
    source.onopen = () => { stale.hidden = true; };
    source.onerror = () => {
      stale.hidden = false;
      if (source?.readyState === EventSource.CLOSED) { // the browser does not try again: the worker may be starting
        close();
        setTimeout(open, again);
      }
    };
    source.addEventListener("part", (event) => { part = event.data; show(); });
    source.addEventListener("last", (event) => { part = event.data; last = true; close(); show(); });
  };
  open();
  setInterval(show, 1000); // what could not be shown when it came
  document.addEventListener("visibilitychange", () => document.hidden ? close() : open());
}
