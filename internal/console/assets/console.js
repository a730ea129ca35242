// Updates the live part of a page. Without this script, pages work and are not updated.
"use strict";

for (const live of document.querySelectorAll("[data-live]")) {
  const again = 3000, address = live.dataset.live, stale = document.getElementById("stale");
  let source, part, last = false;
  const isUsed = () => {
    const selected = document.getSelection();
    if (selected && !selected.isCollapsed && live.contains(selected.anchorNode)) return true; // text is selected
    return !last && live.querySelector(":is(a, button):hover"); // the pointer is on a link or button
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
    if (source || last || document.hidden) return; // a hidden page needs no updates
    source = new EventSource(address);
    source.onopen = () => { stale.hidden = true; };
    source.onerror = () => {
      stale.hidden = false;
      if (source?.readyState === EventSource.CLOSED) { // the browser does not reconnect: the worker may be starting
        close();
        setTimeout(open, again);
      }
    };
    source.addEventListener("part", (event) => { part = event.data; show(); });
    source.addEventListener("last", (event) => { part = event.data; last = true; close(); show(); });
  };
  open();
  setInterval(show, 1000); // a part that could not be shown when it came
  document.addEventListener("visibilitychange", () => document.hidden ? close() : open());
}
