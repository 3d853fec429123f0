"use strict";
// Draws the heatmap from the levels in its data attributes, and says what lies under pointer or cursor.
(() => {
  const canvas = document.getElementById("heatmap-canvas");
  const value = document.getElementById("heatmap-value");
  const ramp = document.getElementById("heatmap-ramp");
  if (!canvas || !value || !ramp) return;
  document.documentElement.classList.add("scripts");
  const data = canvas.dataset;
  const numbers = text => text.split(",").map(Number);
  const layers = numbers(data.layers), widths = numbers(data.widths);
  const colours = data.colours.split(";").map(numbers);
  const levels = Number(data.levels), lowest = Number(data.lowest), highest = Number(data.highest);
  const bytes = Uint8Array.from(atob(data.cells), character => character.charCodeAt(0));
  const rows = layers.length, columns = bytes.length / 2 / rows;
  const level = (row, column) => {
    const at = 2 * (row * columns + column);
    return (bytes[at] | bytes[at + 1] << 8) / levels;
  };
  const colour = share => {
    const place = share * (colours.length - 1), below = Math.min(Math.floor(place), colours.length - 2);
    return colours[below].map((low, i) => low + (place - below) * (colours[below + 1][i] - low));
  };
  const paint = (target, width, height, shareAt) => {
    const context = target.getContext("2d"), image = context.createImageData(width, height);
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) image.data.set([...colour(shareAt(y, x)), 255], 4 * (y * width + x));
    }
    context.putImageData(image, 0, 0);
  };
  paint(canvas, columns, rows, level);
  paint(ramp, ramp.width, 1, (y, x) => x / (ramp.width - 1));

  let row = 0, column = 0;
  const written = count => count.toLocaleString("en-US");
  const show = () => {
    const width = widths[row];
    const first = Math.floor(column * width / columns) + 1, last = Math.floor((column + 1) * width / columns);
    const share = level(row, column);
    const mean = lowest * Math.pow(highest / lowest, share);
    const sign = share <= 0 ? "≤ " : share >= 1 ? "≥ " : "";
    const neurons = first === last ? `neuron ${written(first)}` : `neurons ${written(first)} to ${written(last)}`;
    value.textContent =
      `Layer ${layers[row]}, ${neurons} of ${written(width)} by activity: ${sign}${Number(mean.toPrecision(3))}`;
  };
  const limit = (number, count) => Math.max(0, Math.min(count - 1, number));
  const point = event => {
    const box = canvas.getBoundingClientRect();
    row = limit(Math.floor((event.clientY - box.top) / box.height * rows), rows);
    column = limit(Math.floor((event.clientX - box.left) / box.width * columns), columns);
    show();
  };
  canvas.addEventListener("pointermove", point);
  canvas.addEventListener("pointerdown", point);
  canvas.addEventListener("keydown", event => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    row = limit(row + step[0], rows);
    column = limit(column + step[1], columns);
    show();
  });
})();
