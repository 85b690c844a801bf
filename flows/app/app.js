/* The page of `har app`: uploads a video, polls its job, shows the result. */

"use strict";

(() => {
  const PAGE = JSON.parse(document.getElementById("page-data").textContent);
  const POLL_MS = 250;
  const DASHES = [[], [7, 4], [2, 3], [10, 3, 2, 3], [5, 2]];
  const STEPS = [0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300];
  const { element, percent, MARKS } = HarPlayer;
  const node = id => document.getElementById(id);
  const isStill = matchMedia("(prefers-reduced-motion: reduce)");

  /* The pending upload or job, if any: {request, id, isCancelled} */
  let asked = null;
  /* The result shown: {result, name, model, player, view, isComparing} */
  let shown = null;
  let chart = null;

  /* To one decimal; almost 0 and 1 are not rounded to them. */
  const exactly = fraction => fraction >= 0.9995 && fraction < 1 ? ">99.9\u202f%" : fraction > 0 && fraction < 0.0005 ? "<0.1\u202f%"
    : `${(100 * fraction).toFixed(1)}\u202f%`;
  const clock = seconds => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
  const colour = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  const announce = text => { node("announcement").textContent = text; };

  /* ---- upload and job ---- */

  /* The text changes often; screen readers only get `announced`. */
  function showProgress(text, done, announced = text) {
    node("progress").hidden = false;
    node("progress-text").textContent = text;
    if (done === null) node("bar").removeAttribute("value"); else node("bar").value = done;
    if (node("announcement").textContent !== announced) announce(announced);
  }

  function begin() {
    cancel();
    asked = { request: null, id: null, isCancelled: false };
    node("problem").hidden = true;
    node("drop").hidden = true;
    return asked;
  }

  function end() {
    const hadFocus = node("progress").contains(document.activeElement);
    asked = null;
    node("progress").hidden = true;
    node("drop").hidden = false;
    if (hadFocus) node("file").focus();
  }

  function fail(name, reason) {
    end();
    const text = name ? `${name}: ${reason}` : reason;
    node("problem").textContent = text;
    node("problem").hidden = false;
    announce(text);
  }

  /* Cancel the pending job, and let the server know. */
  function cancel() {
    if (!asked) return;
    asked.isCancelled = true;
    asked.request?.abort();
    if (asked.id) navigator.sendBeacon(`jobs/${asked.id}/cancel`);
    asked = null;
  }

  function send(file, current) {
    return new Promise((resolve, reject) => {
      const request = current.request = new XMLHttpRequest();
      request.upload.onprogress = ({ loaded, total }) => showProgress(`Uploading ${file.name}: ${percent(loaded / total)}`, loaded / total, `Uploading ${file.name}`);
      request.onload = () => resolve(new Response(request.responseText, { status: request.status }));
      request.onerror = () => reject(new TypeError());
      request.open("POST", "jobs");
      request.send(file);
    });
  }

  async function answerOf(response) {
    const answer = await response.json().catch(() => ({}));
    if (!response.ok) throw new Error(typeof answer.detail === "string" ? answer.detail : "the server rejected the request");
    return answer;
  }

  function showState(name, { state, before, done, total }) {
    if (state === "waiting" && before) showProgress(`${name} is queued: ${before} video${before === 1 ? "" : "s"} ahead`, null);
    else if (!total) showProgress(`Decoding ${name}`, null);
    else showProgress(`Processing ${name}: ${done} of ${total} frames`, done / total, `Processing ${name}`);
  }

  async function ask(name, start) {
    const current = begin();
    try {
      showProgress(`Uploading ${name}`, null);
      const { id } = await answerOf(await start(current));
      current.id = id;
      if (current.isCancelled) navigator.sendBeacon(`jobs/${id}/cancel`);
      for (;;) {
        const job = await answerOf(await fetch(`jobs/${id}`));
        if (current.isCancelled) return;
        if (job.state === "failed") throw new Error(job.error);
        if (job.state === "cancelled") throw new Error("cancelled");
        if (job.state === "done") break;
        showState(name, job);
        await new Promise(resolve => setTimeout(resolve, POLL_MS));
      }
      const result = await answerOf(await fetch(`jobs/${id}/result`));
      if (current.isCancelled) return;
      end();
      show(result, name, id);
    } catch (error) {
      if (!current.isCancelled) fail(name, error instanceof TypeError ? "har app does not answer; is it still running?" : error.message);
    }
  }

  function take(files) {
    const file = files[0];
    if (!file) return;
    if (files.length > 1) fail("", "One video at a time, please.");
    else if (file.size > PAGE.max_bytes) fail(file.name, `larger than the ${Math.floor(PAGE.max_bytes / 1e6)} MB allowed here`);
    else if (!file.size) fail(file.name, "the file is empty");
    else ask(file.name, current => send(file, current));
  }

  /* ---- result ---- */

  function kindOf(label) {
    const truth = shown.result.clip.label;
    return truth === null ? "unknown" : truth === label ? "right" : "wrong";
  }

  function show(result, name, id) {
    shown?.player.unload();
    const view = { ...(shown?.view ?? HarPlayer.view(result.style)) };
    const known = result.models.find(model => model.name === (shown?.model.name ?? PAGE.model));
    shown = { result, name, model: known, view, isComparing: shown?.isComparing ?? false, player: null };
    node("result").hidden = false;
    node("result-title").textContent = result.clip.label === null ? name : `${name}: true label ${result.clip.label}`;
    const stem = name.replace(/\.[^.]*$/, "") || "video";
    Object.assign(node("download"), { href: `jobs/${id}/predictions.json`, download: `${stem}.predictions.json` });
    Object.assign(node("seen"), { href: `jobs/${id}/video`, download: `${stem}.seen.mp4` });
    node("damaged").hidden = !result.damaged;
    node("models").replaceChildren(...result.models.map(choiceOf));
    shown.player = HarPlayer.create(node("player"), { ...result.clip, id: name }, result.style, view);
    buildView();
    choose(known);
    shown.player.load();
    if (isStill.matches) shown.player.seek(result.clip.frames >> 1); else shown.player.play();
    node("result-title").focus({ preventScroll: true });
    node("result").scrollIntoView({ behavior: isStill.matches ? "instant" : "smooth" });
  }

  function choiceOf(model) {
    const kind = kindOf(model.label), radio = element("input", { type: "radio", name: "model", checked: model === shown.model });
    radio.addEventListener("change", () => choose(model));
    return element("label", { className: "model" }, radio, element("b", {}, model.name),
      element("span", { className: `model-verdict ${kind}` }, element("span", {}, MARKS[kind] + model.label), element("span", {}, percent(model.confidence))));
  }

  function buildView() {
    node("view").replaceChildren();
    HarPlayer.controls(node("view"), shown.result.style, shown.view, next => { shown.view = next; applyView(); });
    const all = element("input", { type: "checkbox", checked: shown.isComparing });
    all.addEventListener("change", () => { shown.isComparing = all.checked; applyView(); });
    node("view").prepend(element("label", { className: "check" }, all, "all models side by side"));
  }

  function applyView() {
    const { player, view, model, isComparing } = shown;
    player.setView({ ...view, model: isComparing ? null : model.name });
    node("player").classList.toggle("many", isComparing);
    node("blind").hidden = isComparing || model.attends;
  }

  function choose(model) {
    shown.model = model;
    applyView();
    const kind = kindOf(model.label), label = node("label");
    node("verdict-model").textContent = `${model.name} predicts`;
    label.textContent = MARKS[kind] + model.label;
    label.className = `label ${kind}`;
    const mean = model.top[0][0];
    node("confidence").textContent = `Confidence ${exactly(model.confidence)}, among ${PAGE.num_classes} classes.` + (mean === model.label ? "" :
      ` This is the majority vote of the frames; by mean probability over the video it is ${mean}.`);
    node("top").replaceChildren(...model.top.map(([name, probability], place) => {
      const bar = element("i");
      bar.style.setProperty("--share", probability);
      bar.style.setProperty("--ink-of-series", `var(--series-${place + 1})`);
      return element("li", {}, element("span", {}, name), element("span", {}, exactly(probability)), element("span", { className: "track" }, bar));
    }));
    announce(`${model.name} predicts ${model.label}, confidence ${percent(model.confidence)}`);
    draw();
  }

  /* ---- the chart ---- */

  /* A line at the player's current frame. */
  const head = {
    id: "head",
    afterDatasetsDraw({ ctx, chartArea, scales }) {
      if (!shown?.player) return;
      const x = scales.x.getPixelForValue((shown.player.frame + 0.5) / shown.result.clip.fps);
      ctx.save();
      ctx.strokeStyle = colour("--ink");
      ctx.lineWidth = 1.5;
      ctx.beginPath();
      ctx.moveTo(x, chartArea.top);
      ctx.lineTo(x, chartArea.bottom);
      ctx.stroke();
      ctx.restore();
    },
  };

  function configuration({ seconds, series }) {
    const soft = colour("--soft"), line = colour("--line"), length = shown.result.seconds;
    return {
      type: "line",
      data: { datasets: series.map(({ name, values }, place) => ({
        label: name, data: values.map((y, point) => ({ x: seconds[point], y })), borderColor: colour(`--series-${place + 1}`),
        backgroundColor: colour(`--series-${place + 1}`), borderDash: DASHES[place], borderWidth: 2, pointRadius: values.length < 3 ? 3 : 0, pointHoverRadius: 4,
      })) },
      options: {
        animation: false, maintainAspectRatio: false, parsing: false, normalized: true,
        interaction: { mode: "index", intersect: false },
        onClick: ({ x }) => {
          shown.player.pause();
          shown.player.seek(Math.floor(chart.scales.x.getValueForPixel(x) * shown.result.clip.fps));
        },
        scales: {
          x: { type: "linear", min: 0, max: length, border: { color: line }, grid: { display: false },
            ticks: { color: soft, includeBounds: false, stepSize: STEPS.find(step => length / step <= 9), maxRotation: 0, autoSkipPadding: 16, callback: value => length < 60 ? `${value}\u202fs` : clock(value) } },
          y: { min: 0, max: 1, border: { display: false }, grid: { color: line }, ticks: { color: soft, maxTicksLimit: 5, callback: value => percent(value) } },
        },
        plugins: {
          legend: { position: "bottom", align: "start", labels: { color: colour("--ink"), boxWidth: 24, boxHeight: 0, padding: 14 } },
          tooltip: { callbacks: {
            title: ([item]) => length < 60 ? `${item.parsed.x.toFixed(1)}\u202fs` : clock(item.parsed.x),
            label: item => ` ${item.dataset.label}: ${exactly(item.parsed.y)}`,
          } },
        },
      },
      plugins: [head],
    };
  }

  function draw() {
    const { model, name } = shown;
    Chart.defaults.font.family = getComputedStyle(document.body).fontFamily;
    chart?.destroy();
    chart = new Chart(node("chart"), configuration(model.chart));
    node("chart").setAttribute("aria-label", `Probabilities that ${model.name} gives ${name} over time; the table below has the numbers`);
    node("chart-note").textContent = `by ${model.name}; click to seek`;
    if (node("numbers").open) fillTable();
  }

  /* One row per second, at most one per point of the chart. */
  function fillTable() {
    const { seconds, series } = shown.model.chart;
    const rows = seconds.flatMap((second, point) => point && Math.floor(second) === Math.floor(seconds[point - 1]) ? [] : [point]);
    const headings = ["time", ...series.map(({ name }) => name)];
    const table = element("table", {}, element("thead", {}, element("tr", {}, ...headings.map(text => element("th", { scope: "col" }, text)))),
      element("tbody", {}, ...rows.map(point => element("tr", {}, element("th", { scope: "row" }, clock(seconds[point])),
        ...series.map(({ values }) => element("td", {}, exactly(values[point])))))));
    node("numbers").querySelector(".scroll").replaceChildren(table);
  }

  /* ---- user input ---- */

  /* Who has signed in before needs no token in the address. */
  const hideToken = () => { if (location.hash.startsWith("#token=")) history.replaceState(null, "", location.pathname); };
  hideToken();
  addEventListener("hashchange", hideToken);

  node("file").addEventListener("change", () => {
    const files = [...node("file").files];
    node("file").value = "";
    take(files);
  });
  node("cancel").addEventListener("click", () => { cancel(); end(); announce("Cancelled"); });
  for (const button of document.querySelectorAll("[data-example]")) button.addEventListener("click", () => {
    const { example } = button.dataset;
    ask(`Example ${Number(example) + 1}`, () => fetch(`examples/${example}`, { method: "POST" }));
  });
  /* A video may be dropped anywhere; drops of anything but files are ignored. */
  const hasFiles = event => event.dataTransfer?.types.includes("Files");
  document.addEventListener("dragover", event => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    node("drop").classList.add("over");
  });
  document.addEventListener("dragleave", event => { if (!event.relatedTarget) node("drop").classList.remove("over"); });
  document.addEventListener("drop", event => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    node("drop").classList.remove("over");
    take([...event.dataTransfer.files]);
  });
  document.addEventListener("player-frame", () => chart?.draw());
  node("numbers").addEventListener("toggle", () => { if (node("numbers").open) fillTable(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => shown && draw());
  addEventListener("pagehide", cancel);
  addEventListener("pageshow", ({ persisted }) => persisted && end());
})();
