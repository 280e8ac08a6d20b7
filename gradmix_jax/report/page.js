// Sorting, reading curves, and the threshold. Without this script the page shows everything at the run's own threshold.
"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const make = (name, kind, text = "") => {
    const made = document.createElement(name);
    made.className = kind;
    made.textContent = text;
    return made;
  };

  // Tables: a button in each heading; the third press restores the order of the file.

  const valueOf = (cell) => {
    const text = cell.dataset.v ?? cell.textContent.trim();
    const number = parseFloat(text);
    return cell.tagName === "TD" && !Number.isNaN(number) && !/^[a-z]/i.test(text) ? number : text;
  };
  const missing = (value) => value === "–" || value === "";
  const compare = (a, b) => {
    if (typeof a === "number" && typeof b === "number") return a - b;
    return String(a).localeCompare(String(b), undefined, { numeric: true });
  };

  function sortable(table) {
    const body = table.tBodies[0];
    const rows = [...body.rows];
    const heads = all("thead th", table);
    heads.forEach((head, column) => {
      const button = make("button", "");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      head.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => {
        const values = new Map(rows.map((row) => [row, valueOf(row.cells[column])]));
        const down = rows.some((row) => typeof values.get(row) === "number") && head.dataset.better !== "low";
        const order = down ? ["descending", "ascending", "none"] : ["ascending", "descending", "none"];
        const next = order[(order.indexOf(head.getAttribute("aria-sort")) + 1) % 3];
        heads.forEach((other) => other.setAttribute("aria-sort", other === head ? next : "none"));
        const sign = next === "descending" ? -1 : 1;
        const sorted = next === "none" ? rows : [...rows].sort((a, b) => {
          const [x, y] = [values.get(a), values.get(b)];
          if (missing(x) || missing(y)) return missing(x) - missing(y); // last in either order
          return sign * compare(x, y);
        });
        body.append(...sorted);
      });
    });
  }

  // Plots and drawings: what one points at, or moves to with the arrow keys, is read out below.

  const brief = (name) => (name.length > 40 ? `${name.slice(0, 28)}…${name.slice(-11)}` : name);
  let hint = "Point at a plot, or focus it and use the arrow keys, to read its values."; // on the first one
  const short = (number) => String(Number(number.toPrecision(4)));
  const numbers = (text) => text.trim().split(/\s+/).map(Number);
  const drawn = (svg, name, kind) => {
    const made = document.createElementNS(svg.namespaceURI, name);
    made.setAttribute("class", kind);
    made.setAttribute("hidden", "");
    svg.append(made);
    return made;
  };
  const closest = (distances) => distances.indexOf(Math.min(...distances));

  // `read` shows place `at` of `count` and returns its text; `nearest` gives the place of a point (x, y), or -1.
  function steppable(svg, { count, step, first, read, nearest }) {
    const readout = make("p", "readout", hint);
    hint = "";
    svg.closest(".plot").append(readout);
    let at = -1;
    function show(place) {
      at = Math.max(0, Math.min(count - 1, place));
      const text = read(at);
      readout.textContent = text;
      svg.setAttribute("aria-valuenow", at);
      svg.setAttribute("aria-valuetext", text);
    }
    function point(event) {
      const box = svg.getBoundingClientRect();
      const { x, y, width, height } = svg.viewBox.baseVal;
      const place = nearest(
        x + ((event.clientX - box.left) / box.width) * width, y + ((event.clientY - box.top) / box.height) * height,
      );
      if (place >= 0) show(place);
    }
    svg.addEventListener("pointermove", point);
    svg.addEventListener("pointerdown", point);
    svg.addEventListener("focus", () => { if (at < 0) show(first); });
    const moves = {
      ArrowRight: () => at + step, ArrowUp: () => at + step, ArrowLeft: () => at - step, ArrowDown: () => at - step,
      PageUp: () => at + 10 * step, PageDown: () => at - 10 * step, Home: () => 0, End: () => count - 1,
    };
    svg.addEventListener("keydown", (event) => {
      if (!(event.key in moves) || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      show(moves[event.key]());
    });
    const roles = { role: "slider", tabindex: 0, "aria-valuemin": 0, "aria-valuemax": count - 1 };
    const start = { "aria-valuenow": 0, "aria-valuetext": "move with the arrow keys to read values" };
    Object.entries({ ...roles, ...start }).forEach(([name, value]) => svg.setAttribute(name, value));
  }

  // Line plots: the points of a path, read back by the ranges of the axes.

  function readable(svg) {
    const [left, top, right, bottom] = numbers(svg.dataset.box);
    const [[x0, x1], [y0, y1]] = [numbers(svg.dataset.x), numbers(svg.dataset.y)];
    const toX = (pixel) => x0 + ((pixel - left) / (right - left)) * (x1 - x0);
    const toY = (pixel) => y0 + ((bottom - pixel) / (bottom - top)) * (y1 - y0);
    const lines = all("path[data-name]", svg).map((path) => {
      const points = path.getAttribute("d").match(/-?[\d.]+/g).map(Number);
      const says = path.dataset.says ? path.dataset.says.split("|") : [];
      const dot = drawn(svg, "circle", "dot");
      dot.setAttribute("r", 4);
      dot.style.fill = path.style.stroke;
      return { name: path.dataset.name, points, says, dot };
    });
    const stops = [...new Set(lines.flatMap((line) => line.points.filter((_, i) => i % 2 === 0)))].sort((a, b) => a - b);
    if (!stops.length) return;
    const cursor = svg.querySelector(".cursor");
    const xName = svg.dataset.xLabel.match(/\(([^(,)]+)\)$/)?.[1] ?? svg.dataset.xLabel.split(":")[0];

    function read(at) {
      const pixel = stops[at];
      cursor.removeAttribute("hidden");
      cursor.setAttribute("transform", `translate(${pixel} 0)`);
      const found = lines.flatMap(({ name, points, says, dot }) => {
        const best = 2 * closest(points.filter((_, i) => i % 2 === 0).map((x) => Math.abs(x - pixel)));
        const near = Math.abs(points[best] - pixel) < 10;
        dot.toggleAttribute("hidden", !near);
        dot.setAttribute("cx", points[best]);
        dot.setAttribute("cy", points[best + 1]);
        return near ? [`${brief(name)} ${short(toY(points[best + 1]))} ${says[best / 2] ?? ""}`.trim()] : [];
      });
      return `${xName} ${short(toX(pixel))}: ${found.join("; ")}`;
    }
    steppable(svg, {
      count: stops.length,
      step: Math.max(1, Math.floor(stops.length / 100)),
      first: Math.floor(stops.length / 2),
      read,
      nearest: (x) => closest(stops.map((stop) => Math.abs(stop - x))),
    });
  }

  // Drawings with marks: boxes or points with a text.

  function marked(svg) {
    const says = JSON.parse(svg.dataset.says);
    const marks = svg.dataset.marks.split(";").map(numbers);
    const frame = drawn(svg, "rect", "mark");
    const away = (low, size, at) => Math.max(low - at, at - low - size, 0);
    function read(at) {
      const [x, y, width, height, place] = marks[at];
      const margin = width && height ? 1 : 4; // of a point
      const box = { x: x - margin, y: y - margin, width: width + 2 * margin, height: height + 2 * margin };
      Object.entries(box).forEach(([name, value]) => frame.setAttribute(name, value));
      frame.removeAttribute("hidden");
      return says[place];
    }
    function nearest(x, y) {
      const distances = marks.map(([left, top, width, height]) => away(left, width, x) + away(top, height, y));
      const best = closest(distances);
      return distances[best] < 12 ? best : -1;
    }
    steppable(svg, { count: marks.length, step: 1, first: 0, read, nearest });
  }

  // The threshold of a method: threshold number `at` accepts an image that more than `at` thresholds accept.

  const share = (count, total) => `${((100 * count) / Math.max(total, 1)).toFixed(1)} %`;
  const outOf = (count, total) => `${share(count, total)}\n${count} of ${total}`;

  function decided(cells, at) {
    return cells.map(([row, column, ...pairs]) => {
      let count = 0;
      for (let i = 0; i < pairs.length; i += 2) if (pairs[i] > at) count += pairs[i + 1];
      return [row, column, count];
    });
  }

  function showMatrix(table, { totals, cells }, at) {
    const rows = [...table.tBodies[0].rows];
    const width = rows[0].cells.length - 2;
    const counts = rows.map(() => new Array(width).fill(0));
    decided(cells, at).forEach(([row, column, count]) => { counts[row][column] = count; });
    rows.forEach((row, r) => {
      counts[r][width - 1] = totals[r] - counts[r].reduce((a, b) => a + b, 0);
      counts[r].forEach((count, c) => {
        const cell = row.cells[c + 1];
        const part = count / Math.max(totals[r], 1);
        cell.textContent = count;
        cell.style.setProperty("--s", part.toFixed(2));
        cell.classList.toggle("full", part > 0.55);
        cell.classList.toggle("zero", !count);
      });
    });
  }

  function showTaken(rows, { names, totals, cells }, at) {
    const found = rows.map(() => []);
    decided(cells, at).forEach(([row, column, count]) => { found[row][column] = count; });
    rows.forEach((row, r) => {
      const accepted = found[r][names.length] ?? 0;
      const top = names.map((name, k) => [name, found[r][k] ?? 0]).filter(([, count]) => count);
      top.sort((a, b) => b[1] - a[1]);
      row.cells[2].textContent = accepted;
      row.cells[3].textContent = share(accepted, totals[r]);
      row.cells[1].textContent = top.slice(0, 3).map(([name, count]) => `${name} (${count})`).join(", ") || "none";
    });
  }

  function showStrip(strip, threshold) {
    const cards = all("li", strip);
    let shown = 0;
    let wrong = 0;
    cards.forEach((card) => {
      const accepted = Number(card.dataset.score) >= threshold;
      const unknown = card.dataset.side === "unknown";
      const mistake = unknown ? accepted : !accepted || card.dataset.wrong === "1";
      const keep = strip.dataset.keep === "all" || (strip.dataset.keep === "accepted") === accepted;
      card.hidden = !keep;
      card.classList.toggle("mistake", mistake);
      let verdict = card.querySelector(".verdict");
      if (!verdict) card.insertBefore(verdict = make("span", "verdict"), card.children[1]);
      verdict.textContent = `${accepted ? "accepted" : "rejected"}${mistake ? " ✗" : ""}`;
      shown += keep;
      wrong += keep && mistake;
    });
    const every = strip.dataset.keep === "all";
    const said = every ? `${wrong} of ${cards.length} are wrong (✗)` : `${shown} of ${cards.length} are ${strip.dataset.keep}`;
    strip.querySelector(".shown").textContent = `Of the images that the run stored, ${said} at this threshold.`;
  }

  function movable(section) {
    const data = JSON.parse(section.querySelector("script[type='application/json']").textContent);
    const control = section.querySelector(".control");
    const [input, output, button] = ["input", "output", "button"].map((name) => control.querySelector(name));
    const brief = make("span", "brief");
    control.append(brief);
    control.hidden = false;
    const status = section.querySelector("[role=status]");
    const numbers = Object.fromEntries(all("[data-number]", section).map((each) => [each.dataset.number, each]));
    const takenRows = all(".taken tbody tr", section); // in the order of the file, whatever they are sorted by
    let waiting = 0;

    function show(at) {
      const [accepted, right, wrongly] = [data.accepted[at], data.right[at], data.false[at]];
      const last = at === data.thresholds.length - 1;
      const name = last ? "above all scores" : data.thresholds[at].toFixed(4);
      const texts = {
        f1: data.f1[at].toFixed(4),
        accepted: outOf(accepted, data.known),
        right: outOf(right, data.known),
        false: outOf(wrongly, data.unknown),
        rejected: outOf(data.known - accepted, data.known),
        wrong: outOf(accepted - right, data.known),
      };
      Object.entries(texts).forEach(([key, text]) => { numbers[key].textContent = text; });
      output.textContent = name;
      const [known, unknown] = [share(accepted, data.known), share(wrongly, data.unknown)];
      brief.textContent = `macro-F1 ${texts.f1} · known accepted ${known} · unknown accepted ${unknown}`;
      input.setAttribute("aria-valuetext", `${name}${at === data.own ? ", the run's own" : ""}`);
      if (data.matrix) showMatrix(section.querySelector(".confusion"), data.matrix, at);
      if (data.taken) showTaken(takenRows, data.taken, at);
      all(".strip", section).forEach((strip) => showStrip(strip, data.thresholds[at]));
      all("figcaption .at", section).forEach((each) => { 
        each.textContent = at === data.start ? each.dataset.own : `the threshold ${name}`;
      });
      clearTimeout(waiting);
      waiting = setTimeout(() => { status.textContent = `Threshold ${name}: ${brief.textContent}`; }, 400);
    }
    input.addEventListener("input", () => show(Number(input.value)));
    button.addEventListener("click", () => {
      input.value = data.start;
      show(data.start);
    });
    input.value = data.start; // a browser may have kept another value from the last visit
    show(data.start);
    clearTimeout(waiting); // nothing has changed yet
  }

  all("table.sortable").forEach(sortable);
  all("svg.lines").forEach(readable);
  all("svg[data-marks]").forEach(marked);
  all(".decisions").filter((section) => section.querySelector(".control")).forEach(movable);
  document.documentElement.dataset.ready = "yes";
})();
