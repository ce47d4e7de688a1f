// How is a mask drawn, and how a heat map? Cells on a canvas, each a whole number of pixels.

const LARGEST_CELL = 16;
const TALLEST = 460;
const GAP_FROM = 5; // pixels of a cell from which cells stand apart
const VIRIDIS = ["#440154", "#482878", "#3e4a89", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"];

/** What each cell of a drawing is at frame `number`: 0 absent, 1 active, 2 dropped, 3 grown. */
function cellsAt(drawing, number) {
  const cells = new Uint8Array(drawing.rows * drawing.columns);
  for (let frame = 0; frame <= number; frame += 1) {
    let at = 0;
    const last = frame === number && frame > 0;
    for (const gap of drawing.frames[frame].changed) {
      at += gap;
      cells[at] = last ? (cells[at] ? 2 : 3) : 1 - cells[at];
    }
  }
  return cells;
}

/** Draws [rows, columns] cells with `paint(cell) -> [red, green, blue]`, as large as fits. */
function drawCells(canvas, rows, columns, room, tallest, paint, apart = true) {
  const size = Math.max(1, Math.min(LARGEST_CELL, Math.floor(room / columns), Math.floor(tallest / rows)));
  const gap = apart && size >= GAP_FROM ? 1 : 0;
  canvas.width = columns * size - gap;
  canvas.height = rows * size - gap;
  canvas.style.width = `${canvas.width}px`;
  canvas.classList.toggle("shrunk", canvas.width > room);
  const context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, canvas.height);
  const pixels = new Uint32Array(image.data.buffer).fill(0xff000000);
  for (let row = 0; row < rows; row += 1) {
    for (let column = 0; column < columns; column += 1) {
      const packed = paint(row * columns + column);
      for (let down = 0; down < size - gap; down += 1) {
        const start = (row * size + down) * canvas.width + column * size;
        pixels.fill(packed, start, start + size - gap);
      }
    }
  }
  context.putImageData(image, 0, 0);
}

const packed = ([red, green, blue]) => (0xff000000 | (blue << 16) | (green << 8) | red) >>> 0;

function drawMask(canvas, drawing, number, room) {
  const cells = cellsAt(drawing, number);
  const colours = ["absent", "active", "dropped", "grown"].map((name) => packed(channels(colour(name))));
  drawCells(canvas, drawing.rows, drawing.columns, room, TALLEST, (cell) => colours[cells[cell]]);
}

/** The colour of a share from 0 to 1. */
function warmth(share) {
  const place = Math.min(Math.max(share, 0), 1) * (VIRIDIS.length - 1);
  const [low, high] = [Math.floor(place), Math.ceil(place)].map((at) => channels(VIRIDIS[at]));
  return low.map((value, channel) => Math.round(value + (high[channel] - value) * (place % 1)));
}

function drawHeat(canvas, values, height, width, highest, room) {
  drawCells(canvas, height, width, room, 300, (cell) => packed(warmth(values[cell] / highest)), false);
}

const heatRamp = `linear-gradient(to right, ${VIRIDIS.join(", ")})`;
