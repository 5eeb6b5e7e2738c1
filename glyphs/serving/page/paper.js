// The paper: strokes of a pen, or a picture, on a canvas.  Calls `changed(settled)` whenever it shows something else;
// `settled` is false while a stroke is being drawn.

const STEP = 16; // pixels of the canvas that an arrow key moves the pen

export class Paper {
  constructor(canvas, changed) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.changed = changed;
    this.strokes = []; // each { width, points: [[x, y], ...] }
    this.picture = null; // { blob, bitmap }
    this.stroke = null; // the one being drawn
    this.pointer = null; // the id of the pointer that draws it; null for the keyboard
    this.cursor = null; // where the keyboard's pen is
    this.width = 26;
    canvas.addEventListener("pointerdown", (event) => this.down(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (event) => this.up(event));
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("blur", () => { this.cursor = null; this.lift(); this.draw(); });
    this.draw();
  }

  get empty() { return !this.picture && !this.strokes.length; }

  place(event) {
    const box = this.canvas.getBoundingClientRect();
    const scale = this.canvas.width / box.width;
    return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
  }

  begin(point) {
    this.picture = null;
    this.stroke = { width: this.width, points: [point] };
    this.strokes.push(this.stroke);
  }

  lift() {
    if (!this.stroke) return;
    this.stroke = null;
    this.pointer = null;
    this.changed(true);
  }

  down(event) {
    if (this.stroke || event.button !== 0) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.cursor = null;
    this.begin(this.place(event));
    this.pointer = event.pointerId;
    this.draw();
  }

  move(event) {
    if (!this.stroke || event.pointerId !== this.pointer) return;
    const events = event.getCoalescedEvents?.() ?? [];
    for (const each of events.length ? events : [event]) this.stroke.points.push(this.place(each));
    this.draw();
    this.changed(false);
  }

  up(event) {
    if (event.pointerId === this.pointer) this.lift();
  }

  key(event) {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (event.key in moves) {
      const step = event.shiftKey ? STEP / 4 : STEP;
      const side = this.canvas.width;
      const from = this.cursor ?? [side / 2, side / 2];
      this.cursor = from.map((value, axis) => Math.min(side, Math.max(0, value + step * moves[event.key][axis])));
      if (this.stroke && this.pointer === null) {
        this.stroke.points.push(this.cursor);
        this.changed(false);
      }
    } else if (event.key === " ") {
      this.cursor ??= [this.canvas.width / 2, this.canvas.height / 2];
      if (this.stroke) this.lift(); else this.begin(this.cursor);
    } else if (event.key === "Delete" || event.key === "Backspace") {
      this.clear();
    } else {
      return;
    }
    event.preventDefault();
    this.draw();
  }

  undo() {
    this.stroke = null;
    if (this.picture) this.picture = null; else this.strokes.pop();
    this.draw();
    this.changed(true);
  }

  clear() {
    this.stroke = null;
    this.picture = null;
    this.strokes = [];
    this.draw();
    this.changed(true);
  }

  // Show a picture, which may be of a form that only the service can read; it is sent as it is.
  async show(blob) {
    let bitmap = null;
    try { bitmap = await createImageBitmap(blob); } catch { /* the service says what is wrong with it */ }
    this.strokes = [];
    this.stroke = null;
    this.picture = { blob, bitmap };
    this.draw();
    this.changed(true);
  }

  draw() {
    this.drawing();
    if (this.cursor) {
      this.context.strokeStyle = "#d02020";
      this.context.lineWidth = 2;
      this.context.beginPath();
      this.context.arc(...this.cursor, this.stroke ? this.width / 2 : 10, 0, 2 * Math.PI);
      this.context.stroke();
    }
  }

  drawing() {
    const { context, canvas } = this;
    context.fillStyle = "#fff";
    context.fillRect(0, 0, canvas.width, canvas.height);
    if (this.picture?.bitmap) {
      const { width, height } = this.picture.bitmap;
      const scale = Math.min(canvas.width / width, canvas.height / height);
      const [w, h] = [width * scale, height * scale];
      context.drawImage(this.picture.bitmap, (canvas.width - w) / 2, (canvas.height - h) / 2, w, h);
    }
    context.strokeStyle = "#000";
    context.lineCap = context.lineJoin = "round";
    for (const { width, points } of this.strokes) {
      context.lineWidth = width;
      context.beginPath();
      context.moveTo(...points[0]);
      for (const point of points) context.lineTo(...point);
      context.stroke();
    }
  }

  // What is to be read: the picture as it came, or the drawing as PNG.  Not by toBlob, which a busy browser puts off.
  blob() {
    if (this.picture) return this.picture.blob;
    this.drawing(); // without the keyboard's pen
    const content = atob(this.canvas.toDataURL("image/png").split(",")[1]);
    this.draw();
    return new Blob([Uint8Array.from(content, (byte) => byte.charCodeAt(0))], { type: "image/png" });
  }
}
