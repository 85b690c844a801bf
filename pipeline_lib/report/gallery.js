/* The gallery: players are created when their card comes near, play while visible, and unload their video when far away. */

"use strict";

(() => {
  const cards = [...document.querySelectorAll(".clip")];
  if (!cards.length) return;
  const players = new Map(), seen = new Set(), held = new Set();
  const play = document.getElementById("play"), more = document.getElementById("more"), status = document.getElementById("shown");
  const filters = Object.fromEntries(["class", "outcome", "model"].map(name => [name, document.getElementById(`filter-${name}`)]));
  let playing = !matchMedia("(prefers-reduced-motion: reduce)").matches;
  let view = HarPlayer.view(REPORT.style), limit = REPORT.first_clips;

  const clipOf = card => REPORT.clips[Number(card.dataset.clip)];

  async function prepare(card) {
    await parsed;
    if (!players.has(card)) {
      const clip = clipOf(card);
      const media = { video: addressOf(clip.video, "video/mp4"), still: addressOf(clip.still, "image/jpeg") };
      players.set(card, HarPlayer.create(card.querySelector(".clip-player"), { ...clip, ...media }, REPORT.style, view));
    }
    run(card);
  }

  function release(card) {
    players.get(card)?.pause();
    players.get(card)?.unload();
  }

  /* Play a visible card unless the user paused it. */
  function run(card) {
    const player = players.get(card);
    if (!player || player.playing === (playing && seen.has(card) && !held.has(player))) return;
    if (player.playing) player.pause(); else player.play();
  }

  function matches(card) {
    const clip = clipOf(card), right = clip.models.filter(model => !view.model || model.name === view.model)
      .map(model => model.verdict === clip.label);
    const outcome = right.every(Boolean) ? "right" : right.some(Boolean) ? "mixed" : "wrong";
    return right.length > 0 && (!filters.class.value || clip.label === filters.class.value)
      && (!filters.outcome.value || outcome === filters.outcome.value);
  }

  function show() {
    const found = cards.filter(matches), shown = new Set(found.slice(0, limit));
    for (const card of cards) card.hidden = !shown.has(card);
    status.textContent = found.length ? `${shown.size} of ${found.length} clip${found.length === 1 ? "" : "s"}` : "No clip matches.";
    more.hidden = shown.size === found.length;
    more.textContent = `Show ${Math.min(REPORT.first_clips, found.length - shown.size)} more`;
  }

  function name() {
    play.textContent = playing ? "Pause all" : "Play all";
  }

  function setView(next) {
    view = next;
    for (const player of players.values()) player.setView(view);
  }

  const options = ["scale", "colormap", "squared", "speed", ...REPORT.clips.some(clip => clip.truth) ? ["boxes"] : []];
  HarPlayer.controls(document.getElementById("view"), REPORT.style, view, next => setView({ ...next, model: view.model }), options);
  watch(cards, { margin: "400px 0px", entered: prepare, left: release });
  watch(cards, {
    margin: "0px",
    threshold: 0.2,
    entered: card => { seen.add(card); run(card); },
    left: card => { seen.delete(card); run(card); },
  });
  play.addEventListener("click", () => { playing = !playing; held.clear(); name(); cards.forEach(run); });
  document.addEventListener("player-toggle", ({ detail }) => { if (detail.playing) held.delete(detail); else held.add(detail); });
  more.addEventListener("click", () => {
    const next = cards.filter(matches)[limit];
    limit += REPORT.first_clips;
    show();
    next.querySelector("h3").tabIndex = -1;
    next.querySelector("h3").focus({ preventScroll: true });
  });
  for (const filter of Object.values(filters)) filter.addEventListener("change", () => {
    limit = REPORT.first_clips;
    setView({ ...view, model: filters.model.value || null });
    filters.outcome.querySelector("[value=mixed]").disabled = Boolean(view.model);
    if (view.model && filters.outcome.value === "mixed") filters.outcome.value = "";
    show();
  });
  name();
  show();
})();
