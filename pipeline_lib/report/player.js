/* Plays one clip with the attention of one or several models drawn over it, and their per-frame predictions in sync.

   HarPlayer.create(container, clip, style, view) -> Player    fills `container`; loads and plays nothing yet
     player.load() / player.unload()    fetch or release the video (browsers hold only some dozens at once)
     player.play() / player.pause() / player.seek(frame)
     player.setView(view)               change how attention is drawn; see below
     player.frame, player.playing
   Events of `container` with the player as `detail`: "player-toggle" (the user played or paused it), "player-frame" (a new frame)
   HarPlayer.controls(container, style, view, onChange, options)    builds the controls of a view;
     `options` selects among "scale", "colormap", "squared", "speed" and "boxes"; default: all but the last
   HarPlayer.view(style) -> view        {scale: "article" | "share", default: the style's, colormap, squared: false, model: null, speed: 1,
                                         boxes: true};
     `model`: name of the only model to show

   `clip` is what pipeline_lib/report/player.py's `describe_clip` returns:
     {id, label: str or null, video: URL, still: URL or null (the middle frame), size: [width, height] of both,
      fps, frames: T, grid: K,
      truth: null or the actors' boxes in each frame [T [x0, y0, x1, y1, x0, ...]], fractions of the frame,
      models: [{name, attention: base64 of little-endian uint16 (T, K, K) or null,
                attention_scale, attention_offset: attention = offset + value * scale,
                predicted: [T str], confidence: [T float, 0 to 1], verdict: str, verdict_confidence: float,
                tube: null or {boxes: [T [x0, y0, x1, y1]], iou: [T float or null, where no actor's box is known]},
                importance: null or [T float], each frame's weight in multiples of an equal one}]}
   `style` is what its `player_style` returns: {grid: K, side: S, upsample and smooth: base64 of little-endian float32
      (S, K), scale, percentile, opacity, fade_levels, uniform, full_share, colormap, colormaps: {name: base64 of 256 RGB}}

  HarPlayer.element(tag, properties, ...children), HarPlayer.percent(fraction), HarPlayer.MARKS    shared with the page's scripts

   Colours come from the page's CSS variables (tokens.css). Shapes: T frames, K grid side, S picture side, in row order. */

"use strict";

const HarPlayer = (() => {
  const LEVELS = 256;
  /* Minimum share of the track for a segment to show its class name. */
  const LEGIBLE = 0.03;

  function bytes(base64) {
    return Uint8Array.from(atob(base64), character => character.charCodeAt(0));
  }

  function element(tag, properties = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
      if (name in node && name !== "role") node[name] = value; else node.setAttribute(name, value);
    }
    node.append(...children);
    return node;
  }

  function percent(fraction) {
    return `${Math.round(100 * fraction)}\u202f%`;
  }

  /* Renders attention maps with the arithmetic of pipeline_lib/heatmaps/maps.py and overlay.py. */
  class Painter {
    constructor(style) {
      this.style = style;
      this.side = style.side;
      this.upsample = new Float32Array(bytes(style.upsample).buffer);
      this.smooth = new Float32Array(bytes(style.smooth).buffer);
      this.palettes = Object.fromEntries(Object.entries(style.colormaps).map(([name, colours]) => [name, bytes(colours)]));
      this.rows = new Float32Array(this.side * style.grid);
      this.picture = new Float32Array(this.side * this.side);
      this.levels = new Uint8Array(this.side * this.side);
      this.image = new ImageData(this.side, this.side);
      this.canvas = element("canvas", { width: this.side, height: this.side });
    }

    /* Return weights (S, K) @ map (K, K) @ weights.T. */
    spread(weights, map) {
      const { side, rows, picture } = this, grid = this.style.grid;
      for (let y = 0; y < side; y++) for (let column = 0; column < grid; column++) {
        let sum = 0;
        for (let row = 0; row < grid; row++) sum += weights[y * grid + row] * map[row * grid + column];
        rows[y * grid + column] = sum;
      }
      for (let y = 0; y < side; y++) for (let x = 0; x < side; x++) {
        let sum = 0;
        for (let column = 0; column < grid; column++) sum += rows[y * grid + column] * weights[x * grid + column];
        picture[y * side + x] = sum;
      }
      return picture;
    }

    /* The article's scale: 0 and 255 are the frame's minimum and maximum. */
    articleLevels(map) {
      let low = Infinity, high = -Infinity;
      for (const value of this.spread(this.upsample, map)) { low = Math.min(low, value); high = Math.max(high, value); }
      if (high - low < this.style.uniform) return this.levels.fill(0);
      const factor = 255 / (high - low);
      const picture = this.spread(this.smooth, map.map(value => (value - low) * factor + 0.5));
      for (let i = 0; i < picture.length; i++) this.levels[i] = picture[i];
      return this.levels;
    }

    /* The scale relative to uniform attention: 0 is uniform or less, 255 is `full_share` times uniform. */
    shareLevels(map) {
      const cells = map.length, span = this.style.full_share - 1;
      const picture = this.spread(this.smooth, map);
      for (let i = 0; i < picture.length; i++) {
        this.levels[i] = 255 * Math.min(1, Math.max(0, (picture[i] * cells - 1) / span));
      }
      return this.levels;
    }

    /* The level of the percentile: pixels above it are coloured. */
    threshold(levels) {
      const counts = new Uint32Array(LEVELS);
      for (const level of levels) counts[level]++;
      const rank = Math.floor(this.style.percentile / 100 * (levels.length - 1));
      let level = 0;
      for (let below = counts[0]; below <= rank; below += counts[++level]);
      return level;
    }

    /* Article's scale: transparent up to the threshold, then a smooth step. Relative scale: linear in the level. */
    opacities(levels, view) {
      if (view.scale === "share") return Uint8Array.from({ length: LEVELS }, (_, level) => Math.round(this.style.opacity * level));
      const threshold = this.threshold(levels);
      return Uint8Array.from({ length: LEVELS }, (_, level) => {
        const rise = Math.min(1, Math.max(0, (level - threshold) / this.style.fade_levels));
        return Math.ceil(255 * this.style.opacity * rise * rise * (3 - 2 * rise));
      });
    }

    /* Return a canvas with the map's colours and opacities. */
    paint(map, view) {
      const levels = view.scale === "share" ? this.shareLevels(map) : this.articleLevels(map);
      const alpha = this.opacities(levels, view);
      const palette = this.palettes[view.colormap], data = this.image.data;
      for (let i = 0; i < levels.length; i++) {
        const level = levels[i];
        data[4 * i] = palette[3 * level];
        data[4 * i + 1] = palette[3 * level + 1];
        data[4 * i + 2] = palette[3 * level + 2];
        data[4 * i + 3] = alpha[level];
      }
      this.canvas.getContext("2d").putImageData(this.image, 0, 0);
      return this.canvas;
    }
  }

  const painters = new WeakMap();

  function painter(style) {
    if (!painters.has(style)) painters.set(style, new Painter(style));
    return painters.get(style);
  }

  function decodeAttention(model) {
    const values = new Uint16Array(bytes(model.attention).buffer);
    return Float32Array.from(values, value => (model.attention_offset || 0) + value * model.attention_scale);
  }

  /* Runs of equal predictions, as [{name, first, length}]. */
  function segments(predicted) {
    const found = [];
    predicted.forEach((name, frame) => {
      const last = found[found.length - 1];
      if (last && last.name === name) last.length++; else found.push({ name, first: frame, length: 1 });
    });
    return found;
  }

  /* right, wrong, or unknown without a label */
  function outcome(predicted, label) {
    if (label === null) return "unknown";
    return predicted === label ? "right" : "wrong";
  }

  const MARKS = { right: "\u2713\u00a0", wrong: "\u2717\u00a0", unknown: "" };

  /* Confidence by frame as a CSS polygon. */
  function confidenceOutline(confidence) {
    const points = confidence.flatMap((value, frame) => [frame, frame + 1].map(
      edge => `${(100 * edge / confidence.length).toFixed(2)}% ${(100 * (1 - value)).toFixed(1)}%`));
    return `polygon(0% 100%, ${points.join(", ")}, 100% 100%)`;
  }

  /* Draw boxes, a light line on a dark one; the actors' are dashed. */
  function drawBoxes(context, boxes, isDashed) {
    const { width, height } = context.canvas, unit = Math.max(1, height / 240);
    for (const [thickness, colour] of [[4, "rgb(12 14 20 / .8)"], [1.5, "#fff"]]) {
      context.lineWidth = thickness * unit;
      context.strokeStyle = colour;
      context.setLineDash(isDashed ? [5 * unit, 4 * unit] : []);
      for (let i = 0; i < boxes.length; i += 4) {
        const [x0, y0, x1, y1] = boxes.slice(i, i + 4), inset = 2 * unit;
        const [wide, high] = [(x1 - x0) * width, (y1 - y0) * height].map(side => Math.max(unit, side - 2 * inset));
        context.strokeRect(x0 * width + inset, y0 * height + inset, wide, high);
      }
    }
  }

  class Player {
    constructor(container, clip, style, view) {
      Object.assign(this, { clip, view, painter: painter(style), frame: clip.frames >> 1, playing: false, loaded: false });
      this.attention = new Map(clip.models.filter(model => model.attention).map(model => [model, decodeAttention(model)]));
      this.still = clip.still ? element("img", { src: clip.still, alt: "", onload: () => this.draw() }) : null;
      this.root = element("div", { className: "player" }, this.buildTiles(), this.buildBar());
      this.root.style.setProperty("--shape", clip.size.join(" / "));
      container.replaceChildren(this.root);
      this.setView(view);
    }

    buildTiles() {
      this.video = element("video", { muted: true, loop: true, playsInline: true, preload: "auto", disablePictureInPicture: true,
        "aria-label": `Clip ${this.clip.id}`, tabIndex: -1 });
      if (this.clip.still) this.video.poster = this.clip.still;
      this.video.addEventListener("loadeddata", () => this.start());
      // Seeking to the current frame presents no new one.
      this.video.addEventListener("seeked", () => this.loaded && this.draw());
      this.video.addEventListener("error", () => this.loaded && this.root.classList.add("player-unplayable"));
      this.video.addEventListener("click", () => this.toggle());
      this.tiles = [...this.attention.keys()].map(model => this.buildTile(model));
      const original = element("figure", { className: "player-tile" }, element("div", { className: "player-picture" }, this.video),
        element("figcaption", {}, "video"));
      return element("div", { className: "player-tiles" }, original, ...this.tiles.map(tile => tile.node));
    }

    buildTile(model) {
      const canvas = element("canvas", { "aria-label": `Attention of ${model.name}`, role: "img", onclick: () => this.toggle() });
      const now = element("span", { className: "player-value", "aria-hidden": "true" });
      const caption = element("figcaption", {}, element("span", {}, model.name), now);
      const picture = element("div", { className: "player-picture" }, canvas);
      return { model, canvas, now, node: element("figure", { className: "player-tile" }, picture, caption) };
    }

    buildBar() {
      this.button = element("button", { type: "button", className: "player-toggle", onclick: () => this.toggle() });
      this.tracks = this.clip.models.map(model => this.buildTrack(model));
      this.strips = [...this.clip.models.filter(model => model.tube).map(model => this.buildTube(model)),
        ...this.clip.models.filter(model => model.importance).map(model => this.buildImportance(model))];
      const rows = this.clip.models.flatMap(model => [...this.tracks, ...this.strips].filter(row => row.model === model));
      this.slider = element("div", { className: "player-tracks", tabIndex: 0, role: "slider", "aria-label": "Frame",
        "aria-valuemin": 1, "aria-valuemax": this.clip.frames }, ...rows.map(row => row.node));
      this.slider.addEventListener("keydown", event => this.key(event));
      this.slider.addEventListener("pointerdown", event => this.drag(event));
      this.slider.addEventListener("pointermove", event => event.buttons && this.drag(event));
      return element("div", { className: "player-bar" }, this.button, this.slider);
    }

    /* One model over time: confidence (area), predicted classes (names), and the current frame. */
    buildTrack(model) {
      const kind = outcome(model.verdict, this.clip.label);
      const title = `${model.name} predicts ${model.verdict} for the clip (${percent(model.verdict_confidence)})`;
      const mark = element("b", { className: `player-${kind}` }, MARKS[kind]);
      const area = element("div", { className: "player-confidence" }, ...this.buildSegments(model, () => ""));
      area.style.clipPath = confidenceOutline(model.confidence);
      const names = element("div", { className: "player-segments" }, ...this.buildSegments(model, (name, of) => MARKS[of] + name));
      const track = element("div", { className: "player-track" }, area, names, element("i", { className: "player-head" }));
      const now = element("span", { className: "player-value" });
      const name = element("span", { className: "player-name", title }, mark, model.name);
      return { model, track, now, node: element("div", { className: "player-row" }, name, track, now) };
    }

    /* The IoU of one model's box with the actor's over time. */
    buildTube(model) {
      const title = `IoU of ${model.name}'s box with the actor's`;
      return this.buildStrip(model, "tube", "IoU", title, model.tube.iou, () => this.overlap(model) ?? "no box known");
    }

    /* The weight of each frame relative to the largest one, and a line at an equal weight. */
    buildImportance(model) {
      const most = Math.max(...model.importance), title = `How much ${model.name} weighs each frame; the line is an equal weight`;
      const heights = model.importance.map(weight => weight / most);
      const strip = this.buildStrip(model, "importance", "weight", title, heights, () => this.weight(model));
      const line = element("i", { className: "player-equal" });
      line.style.bottom = `${(100 / most).toFixed(1)}%`;
      strip.track.append(line);
      return strip;
    }

    /* A number over time, as an area from 0 to 1; `text` returns its current value. */
    buildStrip(model, kind, label, title, heights, text) {
      const area = element("div", { className: "player-area" });
      area.style.clipPath = confidenceOutline(heights);
      const track = element("div", { className: "player-track" }, area, element("i", { className: "player-head" }));
      const now = element("span", { className: "player-value" });
      const name = element("span", { className: "player-name", title }, element("b"), label);
      return { model, track, now, text, node: element("div", { className: `player-row player-strip player-${kind}` }, name, track, now) };
    }

    buildSegments(model, text) {
      return segments(model.predicted).map(({ name, first, length }) => {
        const kind = outcome(name, this.clip.label), title = `${name}, frames ${first + 1} to ${first + length}`;
        const isLegible = length >= LEGIBLE * this.clip.frames;
        const node = element("span", { className: `player-${kind}`, title }, isLegible ? text(name, kind) : "");
        node.style.flexGrow = length;
        return node;
      });
    }

    /* The video can be drawn: seek to the current frame, and play on if playing. */
    start() {
      this.loaded = true;
      this.video.playbackRate = this.view.speed;
      this.seek(this.frame);
      this.follow();
      if (this.playing) this.play();
    }

    /* Show each presented frame, by its media time where the browser reports it. */
    follow() {
      if (this.following) return;
      const { video } = this, drawn = (_, metadata) => {
        this.following = this.loaded;
        if (!this.loaded) return;
        const { fps } = this.clip;
        if (!video.seeking) this.show(metadata ? Math.round(metadata.mediaTime * fps) : Math.floor(video.currentTime * fps));
        next(drawn);
      };
      const next = video.requestVideoFrameCallback ? call => video.requestVideoFrameCallback(call) : requestAnimationFrame;
      this.following = true;
      next(drawn);
    }

    load() {
      if (!this.video.hasAttribute("src")) this.video.src = this.clip.video;
    }

    unload() {
      this.loaded = false;
      this.video.removeAttribute("src");
      this.video.load();
    }

    play() {
      // An untouched player shows its still, the middle frame.
      if (!this.video.hasAttribute("src") && !this.touched) this.frame = 0;
      this.touched = true;
      this.setPlaying(true);
      this.load();
      if (this.loaded) this.video.play().catch(() => this.setPlaying(false));
    }

    pause() {
      this.setPlaying(false);
      this.video.pause();
    }

    toggle() {
      if (this.playing) this.pause(); else this.play();
      this.root.dispatchEvent(new CustomEvent("player-toggle", { bubbles: true, detail: this }));
    }

    setPlaying(playing) {
      this.playing = playing;
      this.button.textContent = playing ? "\u275a\u275a" : "\u25b6\ufe0e";
      this.button.setAttribute("aria-label", playing ? "Pause" : "Play");
    }

    seek(frame) {
      const target = Math.min(this.clip.frames - 1, Math.max(0, frame));
      this.touched = true;
      this.load();
      if (this.loaded) this.video.currentTime = (target + 0.5) / this.clip.fps;
      this.show(target);
    }

    key(event) {
      const moves = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, Home: -Infinity, End: Infinity };
      if (event.key in moves) { this.pause(); this.seek(this.frame + moves[event.key]); }
      else if (event.key === " ") this.toggle();
      else return;
      event.preventDefault();
    }

    drag(event) {
      const { left, width } = this.tracks.find(({ node }) => !node.hidden).track.getBoundingClientRect();
      const fraction = (event.clientX - left) / width;
      if (fraction < 0 || fraction > 1) return;
      this.pause();
      this.seek(Math.floor(fraction * this.clip.frames));
    }

    /* Show one frame: its predictions and attention. */
    show(frame) {
      this.frame = Math.min(this.clip.frames - 1, Math.max(0, frame));
      this.draw();
      for (const { model, now } of this.tracks) this.setPrediction(now, model);
      for (const { model, now } of this.tiles) this.setPrediction(now, model);
      for (const { now, text } of this.strips) now.textContent = text();
      const predictions = this.tracks.filter(track => !track.node.hidden).map(({ model }) =>
        `${model.name}: ${model.predicted[this.frame]} ${percent(model.confidence[this.frame])}${this.spokenOverlap(model)}${this.spokenWeight(model)}`);
      this.slider.style.setProperty("--frame", (this.frame + 0.5) / this.clip.frames);
      this.slider.setAttribute("aria-valuenow", this.frame + 1);
      this.slider.setAttribute("aria-valuetext", `${this.frame + 1} of ${this.clip.frames}; ${predictions.join(", ")}`);
      this.root.dispatchEvent(new CustomEvent("player-frame", { bubbles: true, detail: this }));
    }

    /* The IoU in the current frame as text; null where no actor's box is known. */
    overlap(model) {
      return model.tube?.iou[this.frame]?.toFixed(2) ?? null;
    }

    spokenOverlap(model) {
      const overlap = this.overlap(model);
      return overlap === null ? "" : `, IoU ${overlap}`;
    }

    /* The weight of the current frame as text. */
    weight(model) {
      return `${model.importance[this.frame].toFixed(1)}\u00a0\u00d7 equal`;
    }

    spokenWeight(model) {
      return model.importance ? `, weight ${this.weight(model)}` : "";
    }

    setPrediction(node, model) {
      const name = model.predicted[this.frame], kind = outcome(name, this.clip.label);
      node.className = `${node.className.split(" ")[0]} player-${kind}`;
      node.replaceChildren(element("span", {}, MARKS[kind] + name), element("span", {}, percent(model.confidence[this.frame])));
    }

    draw() {
      const source = this.loaded && this.video.readyState > 1 ? this.video : this.still;
      if (!source) return;
      const width = source.videoWidth || source.naturalWidth, height = source.videoHeight || source.naturalHeight;
      if (!width) return;
      const cells = this.clip.grid ** 2;
      for (const { model, canvas, node } of this.tiles) {
        if (node.hidden) continue;
        const shown = this.view.squared ? height : width;
        if (canvas.width !== shown || canvas.height !== height) Object.assign(canvas, { width: shown, height });
        const context = canvas.getContext("2d");
        context.drawImage(source, 0, 0, shown, height);
        const map = this.attention.get(model).subarray(this.frame * cells, (this.frame + 1) * cells);
        context.drawImage(this.painter.paint(map, this.view), 0, 0, shown, height);
        if (!model.tube || !this.view.boxes) continue;
        drawBoxes(context, this.clip.truth[this.frame], true);
        drawBoxes(context, model.tube.boxes[this.frame], false);
      }
    }

    setView(view) {
      this.view = view;
      this.root.classList.toggle("player-squared", view.squared);
      for (const { model, node } of [...this.tiles, ...this.tracks, ...this.strips]) node.hidden = Boolean(view.model) && model.name !== view.model;
      this.root.style.setProperty("--tiles", 1 + this.tiles.filter(tile => !tile.node.hidden).length);
      if (this.loaded) this.video.playbackRate = view.speed;
      this.setPlaying(this.playing);
      this.show(this.frame);
    }
  }

  /* Colour bar with labelled ends. */
  function legend(style) {
    const bar = element("span", { className: "player-legend-bar" }), [low, high] = [element("span"), element("span")];
    const show = view => {
      const colours = bytes(style.colormaps[view.colormap]);
      const stops = Array.from({ length: 16 }, (_, i) => `rgb(${colours.slice(51 * i, 51 * i + 3).join(" ")})`);
      bar.style.background = `linear-gradient(to right, ${stops.join(", ")})`;
      low.textContent = view.scale === "share" ? "uniform" : "frame min.";
      high.textContent = view.scale === "share" ? `\u2265 ${style.full_share}\u00d7` : "frame max.";
    };
    return { node: element("span", { className: "player-legend" }, low, bar, high), show };
  }

  function choice(name, title, values, view, changed) {
    const select = element("select", { name, onchange: () => changed({ ...view(), [name]: values[select.selectedIndex][1] }) },
      ...values.map(([text, value]) => element("option", { selected: view()[name] === value }, text)));
    return element("label", { className: "player-choice" }, element("span", {}, title), select);
  }

  function controls(container, style, view, onChange, options = ["scale", "colormap", "squared", "speed"]) {
    let current = view;
    const key = legend(style);
    const changed = next => { current = next; key.show(next); onChange(next); };
    const choices = {
      scale: ["Scale", [["per frame, as in the article", "article"], ["relative to uniform", "share"]]],
      colormap: ["Colour map", Object.keys(style.colormaps).map(name => [name, name])],
      squared: ["Shape", [["as filmed", false], ["square", true]]],
      speed: ["Speed", [["normal", 1], ["half", 0.5], ["quarter", 0.25]]],
      boxes: ["Boxes", [["shown", true], ["hidden", false]]],
    };
    container.append(...options.map(name => choice(name, ...choices[name], () => current, changed)), key.node);
    key.show(view);
  }

  return {
    Painter, controls, element, percent, MARKS,
    create: (container, clip, style, view) => new Player(container, clip, style, view),
    view: style => ({ scale: style.scale, colormap: style.colormap, squared: false, model: null, speed: 1, boxes: true }),
  };
})();
