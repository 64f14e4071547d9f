"""Many awaits: ``async def`` tasks beside plain ones, on the event loop of the program.

Under ``arun`` and ``astream`` the coroutines run on the caller's loop, plain functions in threads, so
that neither stops the other. The network is played by ``asyncio.sleep``.
"""

from __future__ import annotations

import asyncio
import hashlib

from millstream import Flow, NextTask

PAGES = {"/": ["/about", "/news"], "/about": ["/"], "/news": ["/news/1", "/news/2"], "/news/1": ["/"], "/news/2": []}


async def download(path: str) -> list[str]:
    """Return the links of a page, after as many turns of the loop as its name is long."""
    for _ in path:
        await asyncio.sleep(0)
    return PAGES[path]


class Crawler:
    """A flow that follows links, each page once."""

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self.flow = Flow(name="crawler")
        self.flow.add_task("fetch", self.fetch)
        self.flow.add_task("digest", digest)

    async def fetch(self, path: str) -> list[NextTask]:
        """Fetch one page, then ask for what it links to and for a digest of it."""
        self.seen.add(path)
        links = [link for link in await download(path) if link not in self.seen]
        self.seen.update(links)
        follow = [NextTask("fetch", {"path": link}, spawn_another=True) for link in links]
        return [*follow, NextTask("digest", {"path": path}, spawn_another=True)]


def digest(path: str) -> str:
    """Hash a page: plain code, which would hold the loop up."""
    return f"{path} {hashlib.sha256(path.encode()).hexdigest()[:8]}"


async def crawl() -> list[str]:
    """Return the digests of all pages that can be reached."""
    crawler = Crawler()
    async with crawler.flow as flow:
        return [chunk.value async for chunk in flow.astream("fetch", {"path": "/"}) if chunk.value is not None]


def main() -> None:
    """Crawl, and print what was found."""
    digests = sorted(asyncio.run(crawl()))
    print(f"{len(digests)} pages")
    for line in digests:
        print(" ", line)


if __name__ == "__main__":
    main()
