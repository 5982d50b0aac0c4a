"""What library.mjs does, with the official Python library. PORT, KEY, READER and ORGANIZATION come from the environment."""

import os
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version

from workos import WorkOSClient

VERSION = version("workos")
BASE = f"http://127.0.0.1:{os.environ['PORT']}/"
ORGANIZATION = os.environ["ORGANIZATION"]
CONTEXT = {"organizationId": ORGANIZATION}


def connect(key, **more):
    return WorkOSClient(api_key=key, client_id="client_test", base_url=BASE, **more)


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


def pages_over_250_objects_in_both_directions():
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
        back, before = [seen[-1]], seen[-1]
        while before:
            page = vault.list_kv(limit=60, order=order, search="python/pages/", before=before)
            back = [item.id for item in page.data] + back
            before = page.list_metadata.before
        assert back == seen


def every_refusal_is_its_typed_exception_with_a_message_that_helps():
    name, other, none = "python/refusals", "python refusals", "secret_00000000000000000000000000000000"
    made = vault.create_kv(name=name, value="v", key_context=CONTEXT)
    vault.update_kv(made.id, value="w")
    organization = client.organizations.create_organization(name=other)
    encrypted = vault.create_data_key(context=CONTEXT).encrypted_keys
    unknown = {"organizationId": "org_x"}
    eleven = {**CONTEXT, **{f"k{n}": "v" for n in range(11)}}
    reader = connect(os.environ["READER"])

    def create(name="n", value="v", key_context=CONTEXT):
        return lambda: vault.create_kv(name=name, value=value, key_context=key_context)

    expected = [
        (create(name=name), "ConflictError", "exists"),
        (create(key_context=unknown), "UnprocessableEntityError", "organization"),
        (create(key_context=eleven), "UnprocessableEntityError", "at most 10 pairs"),
        (create(name="x" * 201), "UnprocessableEntityError", "200 characters"),
        (create(name="a/../b"), "UnprocessableEntityError", ".."),
        (create(key_context={**CONTEXT, "n": 1}), "BadRequestError", "expected a string"),
        (create(value="x" * (9 << 20)), "APIError", "octet-stream"),
        (lambda: vault.list_kv(limit=0), "BadRequestError", "limit"),
        (lambda: vault.list_kv(order="sideways"), "BadRequestError", "order"),
        (lambda: vault.list_kv(updated_after="yesterday"), "BadRequestError", "not a date"),
        (lambda: vault.get_kv(none), "NotFoundError", "not found"),
        (lambda: vault.get_name("nowhere"), "NotFoundError", "not found"),
        (lambda: vault.get_name("nul\0"), "BadRequestError", ""),
        (lambda: vault.list_kv_metadata(none), "NotFoundError", "not found"),
        (lambda: vault.list_kv_versions(none), "NotFoundError", "not found"),
        (lambda: vault.update_kv(none, value="x"), "NotFoundError", "not found"),
        (lambda: vault.update_kv(made.id, value="x", version_check=made.version_id), "ConflictError", "is at version"),
        (lambda: vault.delete_kv(none), "NotFoundError", "not found"),
        (lambda: vault.delete_kv(made.id, version_check=made.version_id), "ConflictError", "is at version"),
        (lambda: vault.create_data_key(context=unknown), "UnprocessableEntityError", "organization"),
        (lambda: vault.create_data_key(context={**CONTEXT, "n": 1}), "BadRequestError", "expected a string"),
        (lambda: vault.create_decrypt(keys="V09T"), "BadRequestError", "encrypted keys"),
        (lambda: vault.create_rekey(encrypted_keys="V09T", context=CONTEXT), "BadRequestError", "encrypted keys"),
        (lambda: vault.create_rekey(encrypted_keys=encrypted, context=unknown), "UnprocessableEntityError", "organization"),
        (lambda: client.organizations.get_organization("org_01EHZNVPK3SFK441A1RGBFSHRT"), "NotFoundError", "organization"),
        (lambda: client.organizations.create_organization(name=other), "ConflictError", "exists"),
        (lambda: client.organizations.create_organization(name=".hidden"), "UnprocessableEntityError", ""),
        (lambda: connect("sk_wrong").vault.get_kv(made.id), "AuthenticationError", "API key"),
        (lambda: reader.vault.update_kv(made.id, value="x"), "AuthorizationError", "no write permission"),
        (lambda: reader.organizations.delete_organization(organization.id), "AuthorizationError", "no admin permission"),
    ]
    for number, (call, name, message) in enumerate(expected):
        error = refused(call)
        assert type(error).__name__ == name, f"{number}: {name} expected: {type(error).__name__}: {error}"
        assert message in str(error), f"{number}: {error}"


def a_key_that_is_not_to_be_had_and_too_many_wrong_keys_are_typed_too():
    organization = client.organizations.create_organization(name="python closed")
    made = vault.create_kv(name="n", value="v", key_context={"organizationId": organization.id})

    def order(what):
        headers = {"Authorization": f"Bearer {os.environ['KEY']}"}
        request = urllib.request.Request(f"{BASE}organizations/{organization.id}/{what}", method="POST", headers=headers)
        assert urllib.request.urlopen(request).status == 204

    order("lock")
    error = refused(lambda: connect(os.environ["KEY"], max_retries=0).vault.get_kv(made.id))
    assert type(error).__name__ == "ServerError" and error.status_code == 503 and "locked" in str(error), error
    order("unlock")
    assert vault.get_kv(made.id).value == "v"
    wrong = connect("sk_wrong", max_retries=0)
    with ThreadPoolExecutor(100) as pool:
        errors = list(pool.map(lambda _: refused(lambda: wrong.vault.get_kv(made.id)), range(100)))
    names = {type(error).__name__ for error in errors}
    assert "RateLimitExceededError" in names and names <= {"RateLimitExceededError", "AuthenticationError"}, names


def organizations():
    made = client.organizations.create_organization(name="python", external_id="ext-python", metadata={"t": "x"})
    assert client.organizations.get_organization_by_external_id("ext-python").id == made.id
    assert client.organizations.update_organization(made.id, name="python too").name == "python too"
    listed = client.organizations.list_organizations(limit=100)
    assert any(one.id == made.id and one.metadata == {"t": "x"} for one in listed.data)
    client.organizations.delete_organization(made.id)


def events():
    made = vault.create_kv(name="python/events", value="v", key_context=CONTEXT)
    vault.get_kv(made.id)
    vault.delete_kv(made.id)
    names = ["created", "updated", "read", "deleted"]
    names = [f"vault.data.{name}" for name in names] + ["vault.metadata.read", "vault.names.listed", "vault.kek.created"]
    names += ["vault.dek.read", "vault.dek.decrypted", "vault.dek.rekeyed"]
    # The library takes each of them apart, and would raise where a field is missing.
    seen = list(client.events.list_events(events=names, limit=100).auto_paging_iter())
    assert {event.event for event in seen} == set(names), {event.event for event in seen}
    ours = [event for event in seen if getattr(event.data, "kv_name", None) == "python/events"]
    assert [event.event for event in ours] == ["vault.data.created", "vault.data.read", "vault.data.deleted"]
    assert ours[0].data.key_context == CONTEXT and ours[0].data.actor_name == "clients"


for body in [
    quick_start,
    read_by_name,
    data_keys,
    local_encrypt_and_decrypt,
    pages_over_250_objects_in_both_directions,
    every_refusal_is_its_typed_exception_with_a_message_that_helps,
    a_key_that_is_not_to_be_had_and_too_many_wrong_keys_are_typed_too,
    organizations,
    events,
]:
    check(body)
print(f"{counts['passed']} passed, {counts['failed']} failed")
sys.exit(1 if counts["failed"] else 0)
