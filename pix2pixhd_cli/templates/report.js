"use strict";

const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const one = (selector, root = document) => root.querySelector(selector);

// Light or dark: as the reader's system has it, until the button is pressed.
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const root = document.documentElement;

function isDark() {
  return root.dataset.theme ? root.dataset.theme === "dark" : dark.matches;
}

function colour(name) {
  return getComputedStyle(root).getPropertyValue(name).trim();
}

function runColour(number) {
  return colour(`--run-${number % 6}`);
}

function paintPage() {
  root.classList.toggle("dark", isDark());
  all(".key").forEach((key) => key.style.setProperty("--run", `var(--run-${key.dataset.run % 6})`));
  all(".plot").forEach(paintChart);
}

one("#theme").addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  paintPage();
});
dark.addEventListener("change", paintPage);

// Charts.
function paintChart(plot) {
  if (!plot.data) return;
  const axis = { gridcolor: colour("--line"), zerolinecolor: colour("--line"), linecolor: colour("--line") };
  Plotly.relayout(plot, {
    "font.color": colour("--ink"), paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    ...Object.fromEntries(["xaxis", "yaxis"].flatMap((name) => Object.entries(axis).map(([key, value]) => [`${name}.${key}`, value]))),
  });
  plot.data.forEach((trace, n) => {
    if (trace.meta) Plotly.restyle(plot, { "line.color": runColour(trace.meta.run), "marker.color": runColour(trace.meta.run) }, [n]);
  });
}

// The exponential moving average of values, as if there had been nothing before the first.
function smoothed(values, weight) {
  let mean = 0, share = 1;
  return values.map((value) => {
    if (value === null) return null;
    mean = weight * mean + (1 - weight) * value;
    share *= weight;
    return mean / (1 - share);
  });
}

function withSmoothed(trace) {
  const pale = { ...trace, opacity: 0.3, showlegend: false, hoverinfo: "skip", hovertemplate: undefined, line: { ...trace.line, width: 1 } };
  return [pale, { ...trace, meta: { ...trace.meta, raw: trace.y } }];
}

function draw(plot) {
  const figure = JSON.parse(plot.dataset.figure);
  const traces = figure.data.flatMap((trace) => (trace.meta && trace.meta.smooth ? withSmoothed(trace) : [trace]));
  Plotly.newPlot(plot, traces, figure.layout, { responsive: true, displaylogo: false, displayModeBar: false });
}

function smooth() {
  const slider = one("#smoothing");
  if (!slider) return;
  const weight = Number(slider.value);
  one("#smoothing-shown").textContent = one("#smoothing-weight").textContent = weight.toFixed(2);
  all("#curves .plot").forEach((plot) => {
    plot.data.forEach((trace, n) => {
      if (trace.meta && trace.meta.raw) Plotly.restyle(plot, { y: [smoothed(trace.meta.raw, weight)] }, [n]);
    });
  });
}

// Wiping between two pictures.
all(".wipe").forEach((wipe) => {
  const slider = one("input", wipe);
  slider.addEventListener("input", () => wipe.style.setProperty("--at", `${slider.value}%`));
});

// Samples over time: of each run the newest that are not newer than the step.
function showSamples() {
  const found = one("#samples-data");
  if (!found) return;
  const { steps, frames } = JSON.parse(found.textContent), slider = one("#step");
  const reels = new Map(all(".reel").map((reel) => [`${reel.dataset.run} ${reel.dataset.stem}`, one(".over", reel)]));
  const show = () => {
    const step = steps[slider.value];
    one("#step-shown").textContent = step.toLocaleString("en");
    frames.forEach(({ run, stem, fakes }) => {
      const newest = fakes.findLast(([known]) => known <= step) || fakes[0];
      reels.get(`${run} ${stem}`).src = newest[1];
    });
  };
  let playing = 0;
  const stop = () => {
    clearInterval(playing);
    playing = 0;
    one("#play").textContent = "play";
  };
  slider.addEventListener("input", () => { stop(); show(); });
  one("#play").addEventListener("click", () => {
    if (playing) { stop(); return; }
    if (Number(slider.value) === steps.length - 1) slider.value = 0;
    show();
    one("#play").textContent = "stop";
    playing = setInterval(() => {
      slider.value = Number(slider.value) + 1;
      show();
      if (Number(slider.value) === steps.length - 1) stop();
    }, 400);
  });
  show();
}

// Real and generated: which two pictures of each example are wiped between.
all(".compare").forEach((compare) => {
  const [left, right] = [one(".left", compare), one(".right", compare)];
  const show = () => all("article", compare).forEach((example) => {
    const picture = (title) => one(`figure[data-title="${CSS.escape(title)}"] img`, example);
    for (const [choice, side] of [[left, ".over"], [right, ".under"]]) {
      const source = picture(choice.value);
      one(side, example).src = source ? source.src : "";
    }
  });
  left.addEventListener("change", show);
  right.addEventListener("change", show);
  show();
});

all(".plot").forEach(draw);
showSamples();
smooth();
if (one("#smoothing")) one("#smoothing").addEventListener("input", smooth);
paintPage();
