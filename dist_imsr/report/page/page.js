"use strict";
(() => {
  const hidden = new Set();
  const plots = [...document.querySelectorAll(".plot")];
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  const paper = { "--ground": "#ffffff", "--text": "#1c1c1e", "--line": "#d7d9dd" };

  function theme(printed = false) {
    const named = (name) => (printed ? paper[name] : colour(name));
    const axis = { gridcolor: named("--line"), linecolor: named("--line"), tickcolor: named("--line") };
    const flat = { "font.color": named("--text"), "legend.bgcolor": "rgba(0,0,0,0)" };
    for (const [key, value] of Object.entries(axis)) {
      flat[`xaxis.${key}`] = value;
      flat[`yaxis.${key}`] = value;
    }
    flat["hoverlabel.bgcolor"] = named("--ground");
    flat["hoverlabel.font.color"] = named("--text");
    return flat;
  }

  function visible(trace) {
    return hidden.has(trace.meta) ? "legendonly" : true;
  }

  async function draw(div) {
    if (div.drawn) return div.drawn;
    const text = document.querySelector(`script[data-for="${div.id}"]`).textContent;
    const { data, layout } = JSON.parse(text);
    for (const trace of data) if (trace.meta !== undefined) trace.visible = visible(trace);
    const config = { responsive: true, displayModeBar: false };
    div.drawn = Plotly.newPlot(div, data, layout, config).then(() => Plotly.relayout(div, theme()));
    return div.drawn;
  }

  function switchLabel(label, shown) {
    if (shown) hidden.delete(label); else hidden.add(label);
    for (const row of document.querySelectorAll("tr[data-label]")) {
      if (row.dataset.label === label) row.hidden = !shown;
    }
    for (const div of plots.filter((one) => one.data)) {
      const places = div.data.flatMap((trace, place) => (trace.meta === label ? [place] : []));
      if (places.length) Plotly.restyle(div, { visible: shown ? true : "legendonly" }, places);
    }
  }

  const boxes = [...document.querySelectorAll("#labels input")];
  for (const box of boxes) {
    box.addEventListener("change", () => switchLabel(box.value, box.checked));
    if (!box.checked) switchLabel(box.value, false); // a browser keeps boxes over a reload
  }

  // A figure is drawn when it is about to be seen, as a page may have hundreds.
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) { watcher.unobserve(entry.target); draw(entry.target); }
  }, { rootMargin: "600px" });
  for (const div of plots) watcher.observe(div);

  // A figure cannot be scaled before the page has its layout.
  const loaded = new Promise((done) => {
    if (document.readyState === "complete") done(); else window.addEventListener("load", done);
  });
  window.drawAll = () => loaded.then(() => Promise.all(plots.map(draw)));
  function repaint(printed) {
    for (const div of plots.filter((one) => one.data)) Plotly.relayout(div, theme(printed));
  }

  // Paper is white; a browser prints what is drawn by now, so figures further down are drawn as the page comes to rest.
  window.addEventListener("beforeprint", () => repaint(true));
  window.addEventListener("afterprint", () => repaint(false));
  matchMedia("print").addEventListener("change", (event) => repaint(event.matches));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => repaint(matchMedia("print").matches));
  window.addEventListener("load", () => setTimeout(window.drawAll, 2000));
})();
