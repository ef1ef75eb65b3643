// The timeline: a time chosen on the strip, and older rows where the list ends.
"use strict";
(() => {
  const strip = document.getElementById("strip");
  const bars = [...strip.querySelectorAll("a[data-since]")];
  let from = null;

  const at = (event) => {
    const places = bars.map((bar) => bar.querySelector(".hit").getBoundingClientRect());
    const place = places.findIndex((box) => event.clientX <= box.right);
    return place < 0 ? bars.length - 1 : place;
  };
  const range = (event) => [from, at(event)].sort((one, other) => one - other);

  strip.addEventListener("pointerdown", (event) => {
    if (event.button || !event.target.closest("svg")) return;
    event.preventDefault();
    from = at(event);
    strip.setPointerCapture(event.pointerId);
  });
  strip.addEventListener("pointermove", (event) => {
    if (from === null) return;
    const [first, last] = range(event);
    bars.forEach((bar, number) => bar.classList.toggle("chosen", number >= first && number <= last));
  });
  strip.addEventListener("pointerup", (event) => {
    if (from === null) return;
    const [first, last] = range(event);
    from = null;
    const url = new URL(strip.dataset.url, location.href);
    url.searchParams.set("since", bars[first].dataset.since);
    url.searchParams.set("until", bars[last].dataset.until);
    location.href = url;
  });
  strip.addEventListener("pointercancel", () => { from = null; for (const bar of bars) bar.classList.remove("chosen"); });
  strip.addEventListener("click", (event) => { if (event.target.closest("svg")) event.preventDefault(); });

  if (location.hash === "#words") document.getElementById("words").focus();

  // Beside the events there is room for the tree; above them it would be in the way.
  if (innerWidth < 1100) document.querySelector(".beside details").open = false;

  // Older rows come by themselves where the list ends; the link works without this.
  const older = document.getElementById("older");
  let busy = false;
  async function more() {
    if (busy || older.hidden) return;
    busy = true;
    try {
      const query = new URL(older.href).searchParams;
      const page = await Dashboard.fetched("/ui/part/rows?" + query);
      if (!page) return;
      const fresh = page.querySelector("table");
      Dashboard.append([...fresh.tBodies]);
      older.hidden = !fresh.dataset.older;
      query.set("after", fresh.dataset.older);
      older.href = "?" + query;
    } finally {
      busy = false;
    }
    // Runs are one line each: go on until the page is full.
    filled += 1;
    if (filled < 5 && older.getBoundingClientRect().top < innerHeight) more();
  }
  let filled = 0;
  addEventListener("scroll", () => { filled = 0; }, { passive: true });
  if (older) {
    older.addEventListener("click", (event) => { event.preventDefault(); more(); });
    new IntersectionObserver((seen) => { if (seen.some((entry) => entry.isIntersecting)) more(); }, { rootMargin: "400px" }).observe(older);
  }
})();
