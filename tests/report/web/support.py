"""What the tests of the page share."""


def chart(tab, name):
    return tab.locator(f"[data-figure='{name}']")
