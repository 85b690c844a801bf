/* What the page's parts share: its data, and a watch for what comes into view. */

"use strict";

const REPORT = JSON.parse(document.getElementById("page-data").textContent);

/* Call `entered` when a node comes within `margin` of the window, and `left` (if any) when it goes; once, without `left`. */
function watch(nodes, { margin = "300px", threshold = 0, entered, left }) {
  const observer = new IntersectionObserver(entries => {
    for (const { isIntersecting, target } of entries) {
      if (isIntersecting) entered(target); else if (left) left(target);
      if (isIntersecting && !left) observer.unobserve(target);
    }
  }, { rootMargin: margin, threshold });
  for (const node of nodes) observer.observe(node);
}

/* The text of an inert element, which may stand after the scripts: wait until the page is whole. */
const parsed = new Promise(resolve => {
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", resolve); else resolve();
});

/* Return an address of what an inert element holds in base64. */
function addressOf(id, type) {
  const binary = Uint8Array.from(atob(document.getElementById(id).textContent), character => character.charCodeAt(0));
  return URL.createObjectURL(new Blob([binary], { type }));
}

/* In the frame where MLflow shows the page, its address is a blob's, and going to a part of that is forbidden: scroll there. */
if (location.protocol === "blob:") document.addEventListener("click", event => {
  const link = event.target.closest("a[href^='#']");
  if (!link) return;
  event.preventDefault();
  document.querySelector(link.getAttribute("href")).scrollIntoView();
});
