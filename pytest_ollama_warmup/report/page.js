"use strict";
const tip = document.getElementById("tip");
let shown = null;
function show(bar) {
  if (shown) shown.classList.remove("on");
  shown = bar;
  if (!bar) return;
  bar.classList.add("on");
  const lane = bar.closest(".lane").querySelector(".name").textContent.trim();
  tip.textContent = lane + ": " + bar.dataset.w + ", at " + bar.dataset.s;
  tip.className = "said";
}
for (const track of document.querySelectorAll(".track[tabindex]")) {
  const bars = Array.from(track.querySelectorAll("i"));
  let at = 0;
  track.addEventListener("pointerover", (event) => {
    if (event.target.matches("i")) show(event.target);
  });
  track.addEventListener("focus", () => show(bars[at]));
  track.addEventListener("keydown", (event) => {
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: bars.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    at = Math.min(Math.max(to, 0), bars.length - 1);
    show(bars[at]);
  });
}
