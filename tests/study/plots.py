"""Plots as SVG: points and lines on one pair of axes, nothing more."""

from html import escape

WIDTH, HEIGHT = 640, 320
LEFT, RIGHT, TOP, BOTTOM = 56, 150, 34, 44
COLORS = ("#0b6e99", "#d9730d", "#0f7b6c", "#ad1a72", "#6940a5")


class Plot:
    """A plot with its axes: `x` and `y` are their names and ranges."""

    def __init__(self, title, x, y):
        (self.x_name, self.x_low, self.x_high), (self.y_name, self.y_low, self.y_high) = x, y
        # A curve that does not move has a range all the same.
        self.x_high, self.y_high = max(self.x_high, self.x_low + 1e-6), max(self.y_high, self.y_low + 1e-6)
        self.parts, self.named = [], 0
        self.text(LEFT, 18, title, weight="bold")
        self.parts.append(f'<path d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}" stroke="#888" fill="none"/>')
        self.text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, self.x_name, anchor="middle")
        self.parts.append(
            f'<text transform="translate(14 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)" text-anchor="middle">{escape(self.y_name)}</text>'
        )
        for at in range(5):
            value = self.y_low + (self.y_high - self.y_low) * at / 4
            self.text(LEFT - 6, self.y(value) + 4, f"{value:.3g}", anchor="end")
            self.parts.append(f'<path d="M{LEFT} {self.y(value):.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')

    def x(self, value):
        return LEFT + (value - self.x_low) / (self.x_high - self.x_low) * (WIDTH - LEFT - RIGHT)

    def y(self, value):
        return HEIGHT - BOTTOM - (value - self.y_low) / (self.y_high - self.y_low) * (HEIGHT - TOP - BOTTOM)

    def text(self, x, y, text, anchor="start", weight="normal"):
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}">{escape(text)}</text>')

    def ticks(self, names):
        """Names along the x-axis, as (place, name)."""
        for at, name in names:
            self.text(self.x(at), HEIGHT - BOTTOM + 16, name, anchor="middle")

    def line(self, points, color, width=1.5):
        path = " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)
        self.parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="{width}"/>')

    def dots(self, points, color):
        self.parts += [f'<circle cx="{self.x(x):.1f}" cy="{self.y(y):.1f}" r="3.5" fill="{color}"/>' for x, y in points]

    def name(self, text, color):
        """A line of the legend."""
        at = TOP + 8 + 18 * self.named
        self.named += 1
        self.parts.append(f'<circle cx="{WIDTH - RIGHT + 14}" cy="{at - 4}" r="4" fill="{color}"/>')
        self.text(WIDTH - RIGHT + 24, at, text)

    def write(self, path):
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12" fill="#222">'
        white = f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>'
        path.write_text("\n".join([head, white, *self.parts, "</svg>"]) + "\n", encoding="utf-8")
