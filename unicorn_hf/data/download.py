"""Download a file from the web, within limits of size, time and reach: someone else may have chosen the address."""

import ipaddress
import socket
import time
from urllib.parse import urljoin

from unicorn_hf.errors import InputError

MAX_BYTES = 64 << 20
MAX_SECONDS = 30.0
_MAX_REDIRECTS = 5


def download(url: str, *, allow_private: bool = False, max_bytes: int = MAX_BYTES) -> bytes:
    """The content at an http or https address.

    Args:
        url: the address; up to five redirects are followed, under the same rules.
        allow_private: also allow addresses of this machine and of private networks. They are refused by default,
            because untrusted data could name servers that only this machine can reach.
        max_bytes: the largest content to read; `MAX_SECONDS` limits the time of the whole transfer.

    Raises:
        InputError: the address is not http or https, or cannot be read within these limits.
    """
    import httpx

    end = time.monotonic() + MAX_SECONDS
    address = url
    try:
        for _ in range(_MAX_REDIRECTS + 1):
            body, redirect = _read(httpx.URL(address), allow_private, max_bytes, end)
            if redirect is None:
                return body
            address = urljoin(address, redirect)
    except (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{url[:200]}: cannot be read ({reason})") from error
    raise InputError(f"{url[:200]}: cannot be read (more than {_MAX_REDIRECTS} redirects)")


def _read(url, allow_private: bool, max_bytes: int, end: float) -> tuple[bytes, str | None]:
    """The body of one response, or the address that it redirects to."""
    import httpx

    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError("expected an address that begins with http:// or https://")
    headers, extensions = {"Host": url.netloc.decode("ascii")}, {"sni_hostname": url.host}
    if not allow_private:
        # Connect to the IP address that was checked: a second look-up of the name could give another one.
        url = url.copy_with(host=_public_number(url.host, url.port or (443 if url.scheme == "https" else 80)))
    with (
        httpx.Client(timeout=_left(end), trust_env=allow_private) as client,  # a proxy would resolve the name itself
        client.stream("GET", url, headers=headers, extensions=extensions) as response,
    ):
        if response.has_redirect_location:
            return b"", response.headers["location"]
        if response.status_code != 200:
            raise ValueError(f"the server answers with the status {response.status_code}")
        body = bytearray()
        for chunk in response.iter_bytes():
            body += chunk
            if len(body) > max_bytes:
                raise ValueError(f"it is larger than {max_bytes >> 20} MB")
            _left(end)
        return bytes(body), None


def _public_number(host: str, port: int) -> str:
    numbers = [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    for number in numbers:
        address = ipaddress.ip_address(number.partition("%")[0])
        address = getattr(address, "ipv4_mapped", None) or address
        if not address.is_global or address.is_multicast:
            raise ValueError(
                f"{host} is {address}, an address of this machine or of a private network; allow these "
                "(--allow-private-addresses) where you trust who wrote it"
            )
    return numbers[0]


def _left(end: float) -> float:
    left = end - time.monotonic()
    if left <= 0:
        raise ValueError(f"it takes longer than {MAX_SECONDS:g} s")
    return left
