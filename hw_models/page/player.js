(() => {
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const rgb = (name) => {
    const n = parseInt(css(name).slice(1), 16);
    return [(n >> 16) & 255, (n >> 8) & 255, n & 255];
  };

  const source = document.getElementById("recording");
  if (!source) return;
  const data = JSON.parse(source.textContent);
  const player = document.getElementById("player");
  const frame = document.getElementById("frame");
  const raster = document.getElementById("raster");
  const slider = document.getElementById("step");
  const button = document.getElementById("play");
  const clock = document.getElementById("clock");
  const scores = document.getElementById("scores");
  const pixels = data.frames ? bytes(data.frames.data) : null;
  const layers = data.layers.map((layer) => ({ ...layer, spikes: bytes(layer.data) }));
  const period = Math.max(60, Math.min(350, 3500 / data.steps));
  let step = data.steps - 1;
  let timer = null;
  player.hidden = false;

  const bars = (data.scores[0] || []).map((_, k) => {
    const row = document.createElement("div");
    const name = document.createElement("span");
    const bar = document.createElement("i");
    name.textContent = data.classes[k] ?? k;
    row.append(name, bar);
    scores.append(row);
    return { row, bar };
  });

  function drawFrame() {
    if (!pixels) return;
    const [, channels, height, width] = data.frames.shape;
    const image = new ImageData(width, height);
    const [paper, on, off] = [rgb("--well"), rgb("--on"), rgb("--off")];
    const size = height * width;
    const start = step * channels * size;
    for (let i = 0; i < size; i++) {
      const a = channels === 2 ? pixels[start + i] / 255 : 0;
      const b = pixels[start + (channels === 2 ? size : 0) + i] / 255;
      for (let c = 0; c < 3; c++) {
        const v = paper[c] + (off[c] - paper[c]) * a;
        image.data[4 * i + c] = v + (on[c] - v) * b;
      }
      image.data[4 * i + 3] = 255;
    }
    frame.width = width;
    frame.height = height;
    frame.getContext("2d").putImageData(image, 0, 0);
  }

  function drawRaster() {
    const ratio = window.devicePixelRatio || 1;
    const width = raster.clientWidth;
    const heights = layers.map((layer) => Math.max(24, Math.min(110, layer.shown * 4)));
    const title = 18;
    const height = heights.reduce((sum, h) => sum + h + title + 8, 0);
    raster.style.height = height + "px";
    raster.width = width * ratio;
    raster.height = height * ratio;
    const g = raster.getContext("2d");
    g.scale(ratio, ratio);
    g.font = "12px system-ui, sans-serif";
    g.textBaseline = "top";
    const column = width / data.steps;
    let top = 0;
    layers.forEach((layer, i) => {
      const count = layer.neurons > layer.shown ? `${layer.shown} of ${layer.neurons} neurons` : `${layer.neurons} neurons`;
      g.fillStyle = css("--muted");
      g.fillText(`${layer.name} · ${count}`, 0, top);
      top += title;
      g.fillStyle = css("--well");
      g.fillRect(0, top, width, heights[i]);
      const row = heights[i] / layer.shown;
      for (let t = 0; t < data.steps; t++) {
        g.fillStyle = css(t === step ? "--on" : t < step ? "--ink" : "--faint");
        for (let n = 0; n < layer.shown; n++) {
          if (layer.spikes[t * layer.shown + n]) {
            g.fillRect(t * column + column * 0.15, top + n * row, Math.max(1, column * 0.7), Math.max(1, row * 0.8));
          }
        }
      }
      top += heights[i] + 8;
    });
  }

  function drawScores() {
    if (!bars.length) return;
    const values = data.scores[Math.min(step, data.scores.length - 1)];
    const low = Math.min(0, ...values);
    const high = Math.max(...values, low + 1e-9);
    const best = values.indexOf(Math.max(...values));
    bars.forEach(({ row, bar }, k) => {
      bar.style.width = `${(100 * (values[k] - low)) / (high - low)}%`;
      row.className = k === best ? "best" : "";
    });
  }

  function show(t) {
    step = t;
    slider.value = t;
    clock.textContent = data.dt_ms ? `${((t + 1) * data.dt_ms).toPrecision(3)} ms` : `step ${t + 1} of ${data.steps}`;
    drawFrame();
    drawRaster();
    drawScores();
  }

  function play(on) {
    clearInterval(timer);
    timer = on ? setInterval(() => show((step + 1) % data.steps), period) : null;
    button.textContent = on ? "Pause" : "Play";
  }

  slider.max = data.steps - 1;
  slider.addEventListener("input", () => {
    play(false);
    show(Number(slider.value));
  });
  button.addEventListener("click", () => play(timer === null));
  player.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.key === " " && event.target !== button) play(timer === null);
    else if (by && event.target !== slider) {
      play(false);
      show(Math.max(0, Math.min(data.steps - 1, step + by)));
    } else return; // buttons know Space, sliders know arrows
    event.preventDefault();
  });
  window.addEventListener("resize", () => show(step));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => show(step));
  show(step);
  if (!matchMedia("(prefers-reduced-motion: reduce)").matches && data.steps > 1) play(true);
})();
