"""A registry in this process, whose calls are measured one by one."""

import time
from dataclasses import dataclass, field, replace

from benchmarks.requests_made import token_of
from peerseal.protocol.encoding import canonical_json
from peerseal.protocol.join import JoinToken, join_mac
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.names import make_kid, registry_id, service_id, split_kid
from peerseal.protocol.tokens.proof import sign_proof
from registry.domain.admission import Joined, Vouched
from registry.limits import Limits
from registry.services.access.operators import LOCAL
from registry.services.keys.records import Reason
from registry.services.registry import Registry
from registry.settings import Settings
from registry.storage.queries import ledger

NEWCOMER = "newcomer"
"""The service that is registered, and whose keys are rotated."""
_USES = 10_000


@dataclass(slots=True)
class MeasuredRegistry:
    """A registry of ``size`` keys. Each of its documents is made again for each question, but those of `warm_key_set`
    and `warm_changes`. The services that it serves are named ``s0``, ``s1`` and so on."""

    size: int
    registry: Registry
    token: JoinToken
    _warm: Registry
    _head: int
    _vouchers: list[KeyPair] = field(default_factory=list)
    _first_keys: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, settings: Settings, size: int) -> "MeasuredRegistry":
        """The registry with these settings, which is initialised and filled."""
        registry = Registry(replace(settings, limits=Limits(documents_cached=0)))
        with registry.store.engine.connect() as connection:
            connection.exec_driver_sql("ANALYZE")  # as the server does by itself within a minute
            connection.commit()
            head = ledger.head(connection)
        token = JoinToken.parse(registry.join_tokens.create(NEWCOMER, 3600, _USES, LOCAL).token)
        return cls(size, registry, token, Registry(settings), head)

    def register(self, _: int) -> None:
        """Checks and admits one new service's key, and signs its key statement."""
        key = KeyPair.generate("ES256")
        proof = self._proof(key)
        right = Joined(self.token.id, join_mac(self.token.mac_key, proof))
        admitted = self.registry.admission.admit(NEWCOMER, proof, right)
        assert admitted.appended is not None
        self.registry.publisher.new_statement(admitted.record, admitted.appended)
        self._vouchers.append(key)

    def rotate(self, _: int) -> None:
        """Admits the next key of a host, for which its last one vouches."""
        voucher, key = self._vouchers.pop(), KeyPair.generate("ES256")
        proof, domain = self._proof(key), self._domain
        kid = make_kid(service_id(domain, NEWCOMER), voucher.public.thumbprint)
        call, body = ("POST", f"/v1/services/{NEWCOMER}/keys"), canonical_json({"proof": proof})
        token = token_of(kid, voucher.public.alg, voucher.sign, registry_id(domain), int(time.time()), call, body)
        admitted = self.registry.admission.admit(NEWCOMER, proof, Vouched(voucher.public.thumbprint, token))
        assert admitted.appended is not None
        self.registry.publisher.new_statement(admitted.record, admitted.appended)
        self._vouchers.append(key)

    def revoke(self, family: int) -> None:
        """Revokes the first key of a family, and with it all that it vouched for."""
        service = f"family-{family}"
        assert self.registry.ending.end(service, self.first_key(service), Reason.COMPROMISED, LOCAL)

    def key_set(self, number: int) -> bytes:
        """The signed set of a service, made again."""
        return self.registry.publisher.signed_key_set(f"s{number}").body

    def warm_key_set(self, number: int) -> bytes:
        """The signed set of one of ten services, from memory."""
        return self._warm.publisher.signed_key_set(f"s{number % 10}").body

    def statement(self, number: int) -> bytes:
        """The statement about one key, made again."""
        service = f"s{number}"
        return self.registry.publisher.statement(service, self.first_key(service)).body

    def first_key(self, service: str) -> str:
        """The thumbprint of the service's first key, looked up once."""
        if service not in self._first_keys:
            kid = self.registry.records.keys(service, limit=1)["keys"][0]["kid"]
            self._first_keys[service] = split_kid(kid)[1]
        return self._first_keys[service]

    def changes(self, _: int) -> bytes:
        """The list of what changed in the last hundred entries, about; each time after another one."""
        self._head -= 1
        return self.registry.changes.since(self._head - 100).body

    def warm_changes(self, _: int) -> bytes:
        """The list of recent changes, from memory or made again within a second."""
        return self._warm.changes.recent().body

    @property
    def _domain(self) -> str:
        return self.registry.authority.current().domain

    def _proof(self, key: KeyPair) -> str:
        domain = self._domain
        return sign_proof(key, issuer=service_id(domain, NEWCOMER), audience=registry_id(domain), now=time.time())
