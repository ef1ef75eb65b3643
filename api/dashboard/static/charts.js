// Charts of what was measured, one for each metric, with a mark for each update and rollback.
// Where nothing was measured the line has a gap.
"use strict";
(() => {
  const ink = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const marks = { updated: ["--good", "●"], update_rejected: ["--warn", "▲"], rolled_back: ["--bad", "◀"], version_created: ["--name", "◆"] };

  async function pages(url, most) {
    const items = [];
    let after = null;
    do {
      const reply = await fetch(url + (after ? `&after=${encodeURIComponent(after)}` : ""));
      if (!reply.ok) throw new Error(`the server answered ${reply.status}`);
      const page = await reply.json();
      items.push(...page.data);
      after = page.has_more && items.length < most ? page.last_id : null;
    } while (after);
    return items;
  }

  function marksPlugin(events) {
    return {
      hooks: {
        draw: (chart) => {
          const { ctx, bbox } = chart;
          ctx.save();
          for (const event of events) {
            const x = chart.valToPos(Date.parse(event.recorded_at) / 1000, "x", true);
            if (x < bbox.left || x > bbox.left + bbox.width) continue;
            ctx.strokeStyle = ink((marks[event.kind] ?? ["--faint"])[0]);
            ctx.globalAlpha = 0.5;
            ctx.beginPath();
            ctx.moveTo(x, bbox.top);
            ctx.lineTo(x, bbox.top + bbox.height);
            ctx.stroke();
          }
          ctx.restore();
        },
      },
    };
  }

  function draw(place, metric, unit, points, events, span) {
    const figure = document.createElement("figure");
    const caption = document.createElement("figcaption");
    const last = points.at(-1);
    caption.textContent = `${metric}: ${last[1].toPrecision(3)}${unit ? " " + unit : ""}, ${points.length} points`;
    figure.append(caption);
    place.append(figure);
    const axis = { stroke: ink("--faint"), grid: { stroke: ink("--line"), width: 1 }, ticks: { stroke: ink("--line"), width: 1 } };
    const times = [];
    const values = [];
    for (const [time, value] of points) {
      if (times.length && time - times.at(-1) > span / 20) { times.push(times.at(-1) + 1e-3); values.push(null); }
      times.push(time);
      values.push(value);
    }
    const chart = new uPlot({
      width: figure.clientWidth, height: 110, cursor: { sync: { key: "time" } }, legend: { show: false },
      scales: { x: { time: true, range: [Date.now() / 1000 - span, Date.now() / 1000] } },
      axes: [axis, { ...axis, size: 56 }],
      series: [{}, { label: metric, stroke: ink("--link"), width: 1.5, spanGaps: false, points: { show: true, size: 4 } }],
      plugins: [marksPlugin(events)],
    }, [times, values], figure);
    addEventListener("resize", () => chart.setSize({ width: figure.clientWidth, height: 110 }));
  }

  async function fill(place) {
    const hours = Number(place.dataset.hours) || 1;
    const since = new Date(Date.now() - hours * 3600e3).toISOString();
    const [rollups, events] = await Promise.all([
      pages(`${place.dataset.metrics}?since=${since}&by=time&limit=1000`, 20000),
      pages(`${place.dataset.events}?since=${since}&limit=100`, 500),
    ]);
    const of = new Map();
    for (const one of rollups) {
      if (!of.has(one.metric)) of.set(one.metric, { unit: one.unit, points: [] });
      of.get(one.metric).points.push([Date.parse(one.end) / 1000, one.mean]);
    }
    place.textContent = "";
    for (const [metric, { unit, points }] of of) {
      points.sort((one, other) => one[0] - other[0]);
      draw(place, metric, unit, points, events, hours * 3600);
    }
    if (!of.size) {
      const note = document.createElement("p");
      note.className = "empty";
      note.textContent = "Nothing was measured in this time. Requests that the engine answers are; so is what is pushed: weightledger metrics push accuracy=0.97";
      place.append(note);
    }
  }

  for (const place of document.querySelectorAll(".charts"))
    fill(place).catch((error) => { place.textContent = `What was measured cannot be shown: ${error.message}`; });
})();
