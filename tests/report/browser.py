"""Chromium without a window and without a network."""

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

DRAW_ALL = """
const done = arguments[0];
drawAll().then(() => done(null)).catch((error) => done(String(error)));
"""


def start_browser(width=1300):
    """Starts a driver, which its caller quits."""
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", f"--window-size={width},1000"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    driver.set_script_timeout(120)
    driver.execute_cdp_cmd("Network.enable", {})
    offline = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    driver.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
    return driver


def resize(driver, width, height=900):
    """Makes the page as wide as a phone, which a window cannot be."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def set_dark(driver, dark=True):
    """Chooses the page's colours."""
    features = [{"name": "prefers-color-scheme", "value": "dark"}] if dark else []
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
