"""What library.mjs does, with the official Python library. PORT, KEY, READER and ORGANIZATION come from the environment."""

import os
import sys
from importlib.metadata import version

import workos
from workos import WorkOSClient

VERSION = version("workos")
BASE = f"http://127.0.0.1:{os.environ['PORT']}/"
ORGANIZATION = os.environ["ORGANIZATION"]
CONTEXT = {"organizationId": ORGANIZATION}


def connect(key):
    return WorkOSClient(api_key=key, client_id="client_test", base_url=BASE)


client = connect(os.environ["KEY"])
vault = client.vault
counts = {"passed": 0, "failed": 0}


def check(body):
    try:
        body()
        counts["passed"] += 1
        print(f"ok   python {VERSION}: {body.__name__.replace('_', ' ')}")
    except Exception as error:  # a failed check is counted, and the others run
        counts["failed"] += 1
        print(f"FAIL python {VERSION}: {body.__name__}: {type(error).__name__}: {error}")


def refused(call):
    try:
        call()
    except Exception as error:
        return error
    raise AssertionError("it was not refused")


def quick_start():
    assert client.organizations.get_organization(ORGANIZATION).id == ORGANIZATION
    made = vault.create_kv(name="python/foo", value="secret value", key_context=CONTEXT)
    updated = vault.update_kv(made.id, value="new value", version_check=made.version_id)
    assert updated.metadata.version_id != made.version_id
    assert any(item.id == made.id for item in vault.list_kv(limit=100, search="python/foo").data)
    assert vault.list_kv_metadata(made.id).metadata.version_id == updated.metadata.version_id
    assert vault.get_kv(made.id).value == "new value"
    versions = vault.list_kv_versions(made.id).data
    assert [v.id for v in versions if v.current_version] == [updated.metadata.version_id] and len(versions) == 2
    vault.delete_kv(made.id)
    assert type(refused(lambda: vault.get_kv(made.id))).__name__ == "NotFoundError"


def read_by_name():
    name = "python/db pass:wörd?#%2F"
    made = vault.create_kv(name=name, value="v", key_context=CONTEXT)
    assert vault.get_name(name).id == made.id


def data_keys():
    made = vault.create_data_key(context=CONTEXT)
    assert vault.create_decrypt(keys=made.encrypted_keys).data_key == made.data_key
    moved = vault.create_rekey(encrypted_keys=made.encrypted_keys, context={**CONTEXT, "env": "prod"})
    assert vault.create_decrypt(keys=moved.encrypted_keys).data_key == made.data_key


def local_encrypt_and_decrypt():
    for text, associated in [("café", "aad-1"), ("x" * 100_000, None)]:
        sealed = vault.encrypt(data=text, key_context=CONTEXT, associated_data=associated)
        assert vault.decrypt(encrypted_data=sealed, associated_data=associated) == text


def pages_over_250_objects():
    made = {vault.create_kv(name=f"python/pages/{n}", value="v", key_context=CONTEXT).id for n in range(250)}
    for order in ["asc", "desc"]:
        seen, after = [], None
        while True:
            page = vault.list_kv(limit=60, order=order, search="python/pages/", **({"after": after} if after else {}))
            seen += [item.id for item in page.data]
            after = page.list_metadata.after if page.list_metadata else None
            if not after:
                break
        assert set(seen) == made and seen == sorted(seen, reverse=order == "desc")


def every_refusal_is_its_typed_exception():
    made = vault.create_kv(name="python/refusals", value="v", key_context=CONTEXT)
    vault.update_kv(made.id, value="w")
    expected = [
        (lambda: vault.create_kv(name="python/refusals", value="v", key_context=CONTEXT), "ConflictError"),
        (lambda: vault.update_kv(made.id, value="x", version_check=made.version_id), "ConflictError"),
        (lambda: vault.create_kv(name="n", value="v", key_context={"organizationId": "org_x"}), "UnprocessableEntityError"),
        (lambda: vault.get_kv("secret_00000000000000000000000000000000"), "NotFoundError"),
        (lambda: vault.create_decrypt(keys="V09T"), "BadRequestError"),
        (lambda: connect("sk_wrong").vault.get_kv(made.id), "AuthenticationError"),
        (lambda: connect(os.environ["READER"]).vault.update_kv(made.id, value="x"), "AuthorizationError"),
    ]
    for call, name in expected:
        error = refused(call)
        assert type(error).__name__ == name, f"{name} expected: {type(error).__name__}: {error}"
        assert str(error)


for body in [
    quick_start,
    read_by_name,
    data_keys,
    local_encrypt_and_decrypt,
    pages_over_250_objects,
    every_refusal_is_its_typed_exception,
]:
    check(body)
assert workos
print(f"{counts['passed']} passed, {counts['failed']} failed")
sys.exit(1 if counts["failed"] else 0)
