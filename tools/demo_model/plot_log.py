"""Turns a training log into a small CSV and an SVG plot."""
import argparse
import json

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 720, 300, 46, 34, 14
CURVES = (("text", "#1f6feb"), ("answer", "#d1242f"), ("kl", "#1a7f37"))


def read(path):
    """The log's rows by step; after a restart the later row of a step counts."""
    rows = {}
    with open(path) as f:
        for line in f:
            d = json.loads(line)
            kl = d["kl"]
            rows[d["step"]] = {"step": d["step"], "tokens": d["tokens"], "seq": d["seq"], "mode": d["mode"],
                               "text": d.get("text"), "answer": d.get("answer"), "hit": d.get("hit"),
                               "kl": round(sum(kl) / len(kl), 4)}
    return [rows[s] for s in sorted(rows)]


def path_of(rows, key, high):
    last = rows[-1]["step"]
    points = []
    for r in rows:
        if r[key] is None:
            continue
        x = LEFT + (WIDTH - LEFT - 10) * r["step"] / last
        y = TOP + (HEIGHT - TOP - BOTTOM) * (1 - min(r[key], high) / high)
        points.append("%.1f,%.1f" % (x, y))
    return " ".join(points)


def svg(rows, high=9.0):
    out = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="11">'
           % (WIDTH, HEIGHT), '<rect width="100%" height="100%" fill="white"/>']
    for v in range(0, int(high) + 1, 3):
        y = TOP + (HEIGHT - TOP - BOTTOM) * (1 - v / high)
        out.append('<path d="M%d %.1fH%d" stroke="#ddd"/><text x="%d" y="%.1f" text-anchor="end">%d</text>'
                   % (LEFT, y, WIDTH - 10, LEFT - 6, y + 4, v))
    for i, (key, colour) in enumerate(CURVES):
        out.append('<polyline fill="none" stroke="%s" stroke-width="1.4" points="%s"/>' % (colour, path_of(rows, key, high)))
        out.append('<text x="%d" y="%d" fill="%s">%s</text>' % (WIDTH - 90, TOP + 14 + 15 * i, colour, key))
    out.append('<text x="%d" y="%d">step 0 to %d; loss in nats per token</text></svg>'
               % (LEFT, HEIGHT - 10, rows[-1]["step"]))
    return "\n".join(out) + "\n"


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("log")
    ap.add_argument("--csv", required=True)
    ap.add_argument("--svg", required=True)
    ap.add_argument("--every", type=int, default=2, help="keep one logged row in this many")
    a = ap.parse_args()
    rows = read(a.log)
    with open(a.csv, "w") as f:
        f.write(",".join(rows[0]) + "\n")
        for r in rows[:: a.every]:
            f.write(",".join("" if v is None else str(v) for v in r.values()) + "\n")
    with open(a.svg, "w") as f:
        f.write(svg(rows))


if __name__ == "__main__":
    main()
