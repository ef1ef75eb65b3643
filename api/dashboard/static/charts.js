// Charts of what was measured, one for each metric, with a mark for each update and rollback that
// says what it was. Where nothing was measured the line has a gap.
"use strict";
(() => {
  const ink = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const marks = { updated: ["--good", "●"], update_rejected: ["--warn", "▲"], rolled_back: ["--bad", "◀"], version_created: ["--name", "◆"] };
  const three = (value) => Number(value).toLocaleString("en", { maximumSignificantDigits: 3 });
  const seconds = (iso) => Date.parse(iso) / 1000;

  const clock = (at, step) => new Date(at * 1000).toISOString().slice(...(step >= 86400 ? [5, 10] : [11, step >= 60 ? 16 : 19]));

  async function pages(url, most) {
    const items = [];
    let after = null;
    do {
      const page = await Dashboard.answer(await fetch(url + (after ? `&after=${encodeURIComponent(after)}` : "")));
      items.push(...page.data);
      after = page.has_more && items.length < most ? page.last_id : null;
    } while (after);
    return items;
  }

  function made(name, text, parent, look) {
    const element = document.createElement(name);
    element.textContent = text;
    if (look) element.className = look;
    parent?.append(element);
    return element;
  }

  const told = (event) => `${marks[event.kind]?.[1] ?? "·"} event ${event.seq} ${event.kind.replace("_", " ")}${event.actor ? " by " + event.actor : ""}${event.reason ? ": " + event.reason : ""}`;

  function marked(events, tip) {
    return {
      hooks: {
        drawClear: (chart) => {
          const { ctx, bbox } = chart;
          ctx.save();
          ctx.lineWidth = devicePixelRatio;
          for (const event of events) {
            const x = chart.valToPos(seconds(event.recorded_at), "x", true);
            if (x < bbox.left || x > bbox.left + bbox.width) continue;
            ctx.strokeStyle = ctx.fillStyle = ink((marks[event.kind] ?? ["--faint"])[0]);
            ctx.globalAlpha = 0.45;
            ctx.beginPath();
            ctx.moveTo(x, bbox.top);
            ctx.lineTo(x, bbox.top + bbox.height);
            ctx.stroke();
            ctx.globalAlpha = 1;
            ctx.fillRect(x - 2 * devicePixelRatio, bbox.top, 4 * devicePixelRatio, 4 * devicePixelRatio);
          }
          ctx.restore();
        },
        setCursor: (chart) => {
          const left = chart.cursor.left;
          if (left < 0) { tip.textContent = ""; return; }
          const near = events.map((event) => [Math.abs(chart.valToPos(seconds(event.recorded_at), "x") - left), event]).sort((one, other) => one[0] - other[0])[0];
          const at = chart.cursor.idx;
          const value = at == null ? null : chart.data[1][at];
          const parts = [];
          if (value != null) parts.push(`${three(value)} at ${new Date(chart.data[0][at] * 1000).toISOString().slice(11, 19)} UTC`);
          if (near && near[0] < 6) parts.push(told(near[1]));
          tip.textContent = parts.join(" · ");
        },
      },
    };
  }

  // A chart: `series` are further lines or bands after the first, as uPlot takes them.
  function draw(place, title, value, unit, data, options, events) {
    const figure = made("figure", "", place);
    const caption = made("figcaption", "", figure);
    made("span", title, caption);
    made("strong", value + (unit ? ` ${unit}` : ""), caption);
    const tip = document.createElement("div");
    tip.className = "tip";
    const axis = { stroke: ink("--faint"), grid: { stroke: ink("--line"), width: 1 }, ticks: { stroke: ink("--line"), width: 1 }, font: "11px system-ui" };
    const chart = new uPlot({
      width: figure.clientWidth, height: 120, cursor: { sync: { key: "time" }, y: false, points: { size: 6 } }, legend: { show: false },
      tzDate: (stamp) => uPlot.tzDate(new Date(stamp * 1000), "UTC"),
      axes: [{ ...axis, space: 56, values: (_, ticks, __, ___, step) => ticks.map((at) => clock(at, step)) }, { ...axis, size: 58, values: (_, ticks, __, ___, step) => ticks.map((at) => at.toLocaleString("en", { maximumFractionDigits: Math.max(0, Math.ceil(-Math.log10(step))) })) }],
      plugins: [marked(events, tip)],
      ...options,
    }, data, figure);
    figure.append(tip);
    new ResizeObserver(() => { if (figure.clientWidth !== chart.width) chart.setSize({ width: figure.clientWidth, height: 120 }); }).observe(figure);
    return figure;
  }

  const ORDER = ["accuracy", "latency_ms", "throughput", "queue_ms", "failed", "memory_usage_mb"];

  // A flat line is in the middle, and no line is at the edge.
  function around(_, low, high) {
    if (low == null) return [0, 1];
    const more = (high - low || Math.abs(high) || 1) * 0.1;
    return [low - (low >= 0 && low < more ? low : more), high + more];
  }

  async function fill(place) {
    const hours = Number(place.dataset.hours) || 1;
    const span = hours * 3600;
    const since = new Date(Date.now() - span * 1000).toISOString();
    const [rollups, events] = await Promise.all([
      pages(`${place.dataset.metrics}?since=${since}&by=time&limit=1000`, 20000),
      pages(`${place.dataset.events}?since=${since}&limit=100`, 300),
    ]);
    const of = new Map();
    for (const rollup of rollups) {
      if (!of.has(rollup.metric)) of.set(rollup.metric, { unit: rollup.unit, points: [] });
      of.get(rollup.metric).points.push([seconds(rollup.end), rollup.mean]);
    }
    place.textContent = "";
    // What nobody measured yet takes no room: the hour begins where something is.
    const now = Date.now() / 1000;
    const began = Math.min(now - 60, ...rollups.map((one) => seconds(one.start)));
    const from = Math.max(now - span, began - 0.05 * (now - began));
    const place_of = (name) => (ORDER.indexOf(name) + 1 || ORDER.length + 1);
    const sorted = [...of].sort(([one], [other]) => place_of(one) - place_of(other) || one.localeCompare(other));
    for (const [metric, { unit, points }] of sorted) {
      points.sort((one, other) => one[0] - other[0]);
      const times = [];
      const values = [];
      for (const [time, value] of points) {
        if (times.length && time - times.at(-1) > Math.max((now - from) / 20, 30)) { times.push(times.at(-1) + 1e-3); values.push(null); }
        times.push(time);
        values.push(value);
      }
      draw(place, metric, three(points.at(-1)[1]), unit, [times, values], {
        scales: { x: { time: true, range: [from, now] }, y: { range: around } },
        series: [{}, { label: metric, stroke: ink("--link"), width: 1.5, spanGaps: false, points: { show: points.length < 80, size: 4 } }],
      }, events);
    }
    if (!of.size) made("p", "Nothing was measured in this time. Requests that the engine answers are; so is what is pushed: ", place, "empty").append(made("code", "weightledger metrics push accuracy=0.97"));
  }

  // A line for each state, newest first, in a table for each metric.
  async function states(place) {
    const rollups = await pages(place.dataset.metrics, 200);
    place.textContent = "";
    const of = new Map();
    for (const rollup of rollups) {
      const name = `${rollup.metric}${rollup.unit ? ", " + rollup.unit : ""}`;
      if (!of.has(name)) of.set(name, []);
      of.get(name).push(rollup);
    }
    if (!of.size) { made("p", "Nothing was measured of any state yet.", place, "empty"); return; }
    const columns = ["states", "samples", "mean", "p50", "p90", "p99", "least", "most"];
    for (const [name, listed] of of) {
      const frame = made("div", "", place, "scroll");
      frame.tabIndex = 0;
      frame.setAttribute("role", "region");
      frame.setAttribute("aria-label", `${name} by state`);
      const table = made("table", "", frame, "plain");
      made("caption", name, table).className = "name-of";
      const head = made("tr", "", made("thead", "", table));
      for (const column of columns) made("th", column, head, "num");
      const body = made("tbody", "", table);
      for (const one of listed.slice(0, 12)) {
        const row = made("tr", "", body);
        const link = made("a", one.first_seq === one.last_seq ? one.first_seq : `${one.first_seq}–${one.last_seq}`, made("td", "", row, "num"));
        link.href = place.dataset.event + one.last_seq;
        made("td", one.count.toLocaleString("en"), row, "num");
        for (const value of [one.mean, one.p50, one.p90, one.p99, one.min, one.max]) made("td", value == null ? "–" : three(value), row, "num");
      }
    }
  }

  // By how much a state on trial is worse, with bounds that hold at every moment, and the limit.
  const ASPECTS = { typical: "the typical request", tail: "the slowest twentieth", event: "how often" };
  async function evidence(place) {
    const { series } = await Dashboard.answer(await fetch(place.dataset.evidence));
    const drawn = series.filter((one) => one.points.length);
    place.textContent = "";
    if (!drawn.length) made("p", "Nothing was measured of both states yet.", place, "empty");
    for (const one of drawn) {
      const last = one.points.at(-1);
      const sign = (value) => (value > 0 ? "+" : "") + three(value * 100);
      const unit = one.scale === "relative" ? "%" : "points";
      const hundred = (name) => one.points.map((point) => (point[name] == null ? null : point[name] * 100));
      const times = one.points.map((point) => seconds(point.at));
      const bounds = last.lower == null || last.upper == null ? "bounds not known yet" : `${sign(last.lower)} to ${sign(last.upper)} ${unit}`;
      const figure = draw(place, `${one.metric}, ${ASPECTS[one.aspect]}: worse by`, last.estimate == null ? "–" : sign(last.estimate), unit,
        [times, hundred("estimate"), hundred("lower"), hundred("upper"), times.map(() => one.limit * 100)], {
          series: [{}, { stroke: ink("--text"), width: 1.5, points: { show: times.length < 3, size: 4 } }, ...[{ stroke: ink("--link") }, { stroke: ink("--link") }, { stroke: ink("--bad"), dash: [6, 4] }].map((line) => ({ ...line, width: 1, points: { show: false } }))],
          bands: [{ series: [3, 2], fill: ink("--link") + "2e" }],
          scales: { x: { time: true }, y: { range: around } },
        }, []);
      made("p", `${bounds}; harm is more than ${three(one.limit * 100)} ${unit} (dashed): ${three(last.statistic)} of ${three(one.needed)} needed to show it · ${last.n_old.toLocaleString("en")} old, ${last.n_new.toLocaleString("en")} new${one.whole ? "" : " · the picture ends before the trial"}`, figure, "note");
    }
  }

  // What learning rules were told of how well it goes, with a mark for each update that was refused.
  function feedback(place) {
    const told = JSON.parse(place.dataset.feedback);
    const points = { show: told.length < 80, size: 4 };
    draw(place, "feedback", three(told.at(-1).feedback), "", [told.map((one) => seconds(one.recorded_at)), told.map((one) => one.feedback)], {
      scales: { x: { time: true, range: (_, low, high) => (low === high ? [low - 60, high + 60] : [low, high]) }, y: { range: around } },
      series: [{}, { label: "feedback", stroke: ink("--link"), width: 1.5, points }],
    }, told.filter((one) => one.kind === "update_rejected"));
  }

  const failed = (place) => (error) => { place.textContent = `What was measured cannot be shown: ${error.message}`; };
  for (const place of document.querySelectorAll(".charts[data-metrics]")) fill(place).catch(failed(place));
  for (const place of document.querySelectorAll("[data-evidence]")) {
    const look = () => evidence(place).catch(failed(place));
    look();
    if (place.dataset.again) setInterval(() => { if (!document.hidden) look(); }, 5000);
  }
  for (const place of document.querySelectorAll("[data-feedback]")) feedback(place);
  for (const place of document.querySelectorAll(".quantiles")) states(place).catch(failed(place));
})();
