/* Shared by the page's scripts: its data, and a helper that reacts to elements coming into view. */

"use strict";

const REPORT = JSON.parse(document.getElementById("page-data").textContent);

/* Call `entered` when a node comes within `margin` of the viewport and `left` when it leaves; without `left`, once only. */
function watch(nodes, { margin = "300px", threshold = 0, entered, left }) {
  const observer = new IntersectionObserver(entries => {
    for (const { isIntersecting, target } of entries) {
      if (isIntersecting) entered(target); else if (left) left(target);
      if (isIntersecting && !left) observer.unobserve(target);
    }
  }, { rootMargin: margin, threshold });
  for (const node of nodes) observer.observe(node);
}

/* Resolves once the page is parsed: inert elements may follow the scripts. */
const parsed = new Promise(resolve => {
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", resolve); else resolve();
});

/* Return an object URL of an inert element's base64 content. */
function addressOf(id, type) {
  const binary = Uint8Array.from(atob(document.getElementById(id).textContent), character => character.charCodeAt(0));
  return URL.createObjectURL(new Blob([binary], { type }));
}

/* In MLflow's frame the page is a blob URL, where navigating to an anchor is forbidden: scroll instead. */
if (location.protocol === "blob:") document.addEventListener("click", event => {
  const link = event.target.closest("a[href^='#']");
  if (!link) return;
  event.preventDefault();
  document.querySelector(link.getAttribute("href")).scrollIntoView();
});
