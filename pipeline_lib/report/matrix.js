/* Confusion matrices as tables; a line below describes the cell under the pointer or the keyboard focus. */

"use strict";

(() => {
  const { element } = HarPlayer;
  const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

  function build(container) {
    const { model, classes, cells } = REPORT.matrices[Number(container.dataset.matrix)];
    const counts = classes.map(() => classes.map(() => 0));
    for (const [row, column, count] of cells) counts[row][column] = count;
    const totals = counts.map(row => row.reduce((sum, count) => sum + count, 0));
    const status = element("p", { className: "status", ariaLive: "polite" }, summary(classes, counts, totals));
    const head = element("tr", {}, element("td", { className: "corner" }, "true \u2193 predicted\u00a0\u2192"),
      ...classes.map(name => element("th", { scope: "col" }, element("span", {}, name))));
    const grid = classes.map((name, row) => classes.map((_, column) => {
      const share = totals[row] ? counts[row][column] / totals[row] : 0;
      const cell = element("td", { tabIndex: -1, className: row === column ? "hit" : "miss" }, counts[row][column] || "");
      cell.style.setProperty("--share", share.toFixed(3));
      cell.classList.toggle("strong", share > 0.55);
      cell.setAttribute("aria-label", `${counts[row][column]}`);
      return cell;
    }));
    const rows = grid.map((row, number) => element("tr", {}, element("th", { scope: "row" }, classes[number]), ...row));
    const table = element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows));
    table.setAttribute("role", "grid");
    table.setAttribute("aria-label", `Confusion matrix of ${model}`);
    const scroll = element("div", { className: "scroll" }, table);
    container.classList.toggle("dense", classes.length > 14);
    container.replaceChildren(scroll, status);
    grid[0][0].tabIndex = 0;
    follow(table, grid, (row, column) => {
      const share = totals[row] ? Math.round(100 * counts[row][column] / totals[row]) : 0;
      status.textContent = `${classes[row]} predicted as ${classes[column]}: `
        + `${counts[row][column]} of ${totals[row]} clips (${share}\u202f%)`;
    });
  }

  /* The most frequent confusion, shown until a cell is pointed at. */
  function summary(classes, counts, totals) {
    let worst = null;
    counts.forEach((row, true_) => row.forEach((count, predicted) => {
      if (true_ !== predicted && count > (worst ? worst.count : 0)) worst = { count, true_, predicted };
    }));
    if (!worst) return "No clip was misclassified.";
    return `Most frequent confusion: ${classes[worst.true_]} predicted as ${classes[worst.predicted]}, ${worst.count} of ${totals[worst.true_]} clips`;
  }

  function follow(table, grid, describe) {
    const place = cell => {
      const row = grid.findIndex(cells => cells.includes(cell));
      return row < 0 ? null : [row, grid[row].indexOf(cell)];
    };
    let marked = [], current = grid[0][0];
    const mark = (row, column) => {
      for (const node of marked) node.classList.remove("marked");
      const header = table.tHead.rows[0].cells[column + 1];
      marked = [header, table.tBodies[0].rows[row].cells[0], ...grid[row], ...grid.map(cells => cells[column])];
      for (const node of marked) node.classList.add("marked");
      describe(row, column);
    };
    const point = event => {
      const found = place(event.target);
      if (found) mark(...found);
    };
    table.addEventListener("mouseover", point);
    table.addEventListener("focusin", point);
    table.addEventListener("keydown", event => {
      const step = STEPS[event.key], found = place(event.target);
      if (!step || !found) return;
      event.preventDefault();
      const next = grid[found[0] + step[0]]?.[found[1] + step[1]];
      if (!next) return;
      current.tabIndex = -1;
      current = next;
      current.tabIndex = 0;
      current.focus();
    });
  }

  watch(document.querySelectorAll(".matrix"), { margin: "600px", entered: build });
})();
