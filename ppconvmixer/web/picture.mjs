// From a file to the pixels of a picture as decode in transforms.py gives them: EXIF orientation is ignored,
// transparency dropped, a colour profile not applied.

/** What the user can mend, or should know; the message is a sentence. */
export class Mistake extends Error {}

/** Return a file's content as a Blob that every decoder leaves lying as its pixels lie. */
export async function unturned(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  return new Blob(withoutExif(bytes), { type: file.type });
}

/** Return the parts of a file without EXIF data of a JPEG or PNG: browsers turn the picture whatever they are told. */
export function withoutExif(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const parts = [];
  let kept = 0;
  const leaveOut = (from, to) => {
    parts.push(bytes.subarray(kept, from));
    kept = to;
  };
  if (bytes.length > 3 && view.getUint16(0) === 0xffd8)
    for (let at = 2, next; at + 4 <= bytes.length && bytes[at] === 0xff && bytes[at + 1] !== 0xda; at = next) {
      next = at + 2 + view.getUint16(at + 2);
      if (bytes[at + 1] === 0xe1) leaveOut(at, next);
    }
  else if (bytes.length > 7 && view.getUint32(0) === 0x89504e47)
    for (let at = 8, next; at + 8 <= bytes.length; at = next) {
      next = at + 12 + view.getUint32(at);
      if (view.getUint32(at + 4) === 0x65584966) leaveOut(at, next); // "eXIf"
    }
  return [...parts, bytes.subarray(kept)];
}

/**
 * Decode a picture.
 *
 * @returns width, height, and rows, a function (top, count) that returns so many rows, RGBA, a byte a channel
 * @throws Mistake - it cannot be decoded, as a whole; rows throws one as well
 */
export async function decode(blob, name) {
  const options = { premultiplyAlpha: "none", colorSpaceConversion: "none" };
  const picture = await createImageBitmap(blob, options).catch(() => {
    throw new Mistake(`${name} is not a picture that this browser can read.`);
  });
  const { width, height } = picture;
  let beneath = null;
  const rows = (top, count) => {
    const data = drawn(picture, top, count);
    for (let i = 3; i < data.length; i += 4)
      if (data[i] < 255) {
        beneath ??= uploaded(picture); // a canvas forgets the colours of what it cannot show
        return beneath(top, count);
      }
    return data;
  };
  return { width, height, rows };
}

function drawn(picture, top, count) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [picture.width, count];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "rgb(1, 2, 3)";
  context.fillRect(0, 0, 1, 1);
  if (String(context.getImageData(0, 0, 1, 1).data) !== "1,2,3,255")
    throw new Mistake("This browser hides pixels from pages; allow this page to read canvases, and try again.");
  context.clearRect(0, 0, 1, 1);
  context.drawImage(picture, 0, -top);
  return context.getImageData(0, 0, picture.width, count).data;
}

function uploaded(picture) {
  const sorry = new Mistake("The picture is transparent, and this browser does not tell its colours (by WebGL).");
  const gl = document.createElement("canvas").getContext("webgl");
  if (!gl) throw sorry;
  const texture = gl.createTexture();
  gl.bindTexture(gl.TEXTURE_2D, texture);
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, picture);
  gl.bindFramebuffer(gl.FRAMEBUFFER, gl.createFramebuffer());
  gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, texture, 0);
  return (top, count) => {
    const data = new Uint8Array(4 * picture.width * count);
    gl.readPixels(0, top, picture.width, count, gl.RGBA, gl.UNSIGNED_BYTE, data);
    if (gl.getError() !== gl.NO_ERROR) throw sorry; // too large a picture, or the graphics processor is gone
    return data;
  };
}
