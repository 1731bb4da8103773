"""The web demo's parts: where answers come from, what is drawn, how events are handled, how the page looks."""
