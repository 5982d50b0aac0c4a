// The quick start and everything else that the official Node library does with a vault, against a vault that listens on
// 127.0.0.1:$PORT. `library.mjs DIRECTORY NAME`: where it is installed, and under which name. Prints one line for each check.
import { createRequire } from 'node:module';
import assert from 'node:assert/strict';
import path from 'node:path';
import { readFileSync } from 'node:fs';

const [directory, name] = process.argv.slice(2);
const require = createRequire(path.resolve(directory, 'package.json'));
const { WorkOS } = require(name);
const { version } = JSON.parse(readFileSync(path.resolve(directory, 'node_modules', name, 'package.json')));
const major = Number(version.split('.')[0]);
const { PORT, KEY, READER, ORGANIZATION } = process.env;
const connect = (key, more = {}) => new WorkOS(key, { apiHostname: '127.0.0.1', port: Number(PORT), https: false, ...more });
const workos = connect(KEY);
const { vault } = workos;
const context = { organizationId: ORGANIZATION };
let [passed, failed] = [0, 0];

async function check(name, body) {
  try {
    await body();
    passed += 1;
    console.log(`ok   node ${version}: ${name}`);
  } catch (error) {
    failed += 1;
    console.log(`FAIL node ${version}: ${name}: ${error.stack}`);
  }
}

// The class and message of what a call is refused with.
async function refusal(promise) {
  try {
    await promise;
  } catch (error) {
    return { name: error.constructor.name, status: error.status, message: error.message };
  }
  throw new Error('it was not refused');
}

await check('quick start', async () => {
  const organization = await workos.organizations.getOrganization(ORGANIZATION);
  assert.equal(organization.id, ORGANIZATION);
  const created = await vault.createObject({ name: `foo-${version}`, value: 'secret value', context });
  assert.match(created.id, /^secret_[0-9A-F]{32}$/);
  assert.deepEqual(created.context, context);
  assert.ok(created.updatedAt instanceof Date && !Number.isNaN(created.updatedAt.getTime()));
  const updated = await vault.updateObject({ id: created.id, value: 'new value', versionCheck: created.versionId });
  assert.notEqual(updated.metadata.versionId, created.versionId);
  assert.equal(updated.value, undefined);
  assert.ok((await vault.listObjects()).data.length > 0);
  const { data } = await vault.listObjects({ limit: 1000 });
  assert.ok(data.some((object) => object.id === created.id));
  const described = await vault.describeObject({ id: created.id });
  assert.equal(described.metadata.versionId, updated.metadata.versionId);
  const read = await vault.readObject({ id: created.id });
  assert.equal(read.value, 'new value');
  assert.equal(read.metadata.updatedBy.name, 'clients');
  const versions = await vault.listObjectVersions({ id: created.id });
  const all = Array.isArray(versions) ? versions : versions.data;
  assert.equal(all.length, 2);
  assert.deepEqual(all.filter((v) => v.currentVersion).map((v) => v.id), [updated.metadata.versionId]);
  await vault.deleteObject({ id: created.id });
  assert.equal((await refusal(vault.readObject({ id: created.id }))).name, 'NotFoundException');
});

await check('read by name', async () => {
  const name = `prod/db pass:wörd?#%2F ${version}`;
  const { id } = await vault.createObject({ name, value: 'v', context });
  assert.equal((await vault.readObjectByName(name)).id, id);
  if (major >= 11) {
    assert.equal((await vault.readObjectByName({ name })).id, id);
  }
});

await check('data keys', async () => {
  const pair = await vault.createDataKey({ context });
  const [key, encrypted] = [pair.dataKey.key, pair.encryptedKeys];
  const opened = await vault.decryptDataKey({ keys: encrypted });
  assert.equal(opened.key, key);
  if (vault.createRekey) {
    const moved = await vault.createRekey({ context: { ...context, env: 'prod' }, encryptedKeys: encrypted });
    const again = await vault.decryptDataKey({ keys: moved.encryptedKeys });
    assert.equal(again.key, key);
    assert.notEqual(moved.encryptedKeys, encrypted);
  }
});

await check('local encrypt and decrypt', async () => {
  for (const [text, associated] of [['café', 'aad-1'], ['', undefined], ['x'.repeat(100_000), '']]) {
    const sealed = await vault.encrypt(text, context, associated);
    assert.equal(await vault.decrypt(sealed, associated), text);
  }
  const sealed = await vault.encrypt('text', context, 'one');
  await assert.rejects(vault.decrypt(sealed, 'another'));
});

await check('pages over 250 objects in both directions', async () => {
  const names = Array.from({ length: 250 }, (_, n) => `pages/${version}/${n}`);
  for (let at = 0; at < names.length; at += 25) {
    await Promise.all(names.slice(at, at + 25).map((name) => vault.createObject({ name, value: 'v', context })));
  }
  for (const order of major >= 8 ? ['asc', 'desc'] : ['desc']) {
    const seen = [];
    let page;
    let after;
    do {
      page = await vault.listObjects({ limit: 40, ...(after ? { after } : {}), ...(major >= 8 ? { order } : {}) });
      seen.push(...page.data.map((object) => object.id));
      after = page.listMetadata.after;
    } while (after);
    assert.equal(new Set(seen).size, seen.length);
    assert.ok(seen.length >= 250);
    const sorted = [...seen].sort();
    assert.deepEqual(seen, order === 'asc' ? sorted : sorted.reverse());
    if (major >= 8) {
      const back = [seen.at(-1)];
      let before = back[0];
      do {
        page = await vault.listObjects({ limit: 40, before, order });
        back.unshift(...page.data.map((object) => object.id));
        before = page.listMetadata.before;
      } while (before);
      assert.deepEqual(back, seen);
    }
  }
  if (major >= 11) {
    const found = await vault.listObjects({ search: `pages/${version}/`, updatedAfter: new Date(0) });
    assert.equal((await found.autoPagination()).length, 250);
  }
});

// Every status that the vault documents, from each call that can have it.
await check('every refusal is its typed exception with a message that helps', async () => {
  const name = `refusals/${version}`;
  const made = await vault.createObject({ name, value: 'v', context });
  const { id } = made;
  await vault.updateObject({ id, value: 'w' });
  const none = 'secret_00000000000000000000000000000000';
  const other = `refusals of ${version}`;
  const organization = await workos.organizations.createOrganization({ name: other });
  const { encryptedKeys } = await vault.createDataKey({ context });
  const create = (more) => () => vault.createObject({ name: 'n', value: 'v', context, ...more });
  const pairs = Object.fromEntries(Array.from({ length: 11 }, (_, n) => [`k${n}`, 'v']));
  const unknown = { organizationId: 'org_x' };
  // For 400 and 403 both versions of the library have this class for bodies with an `error`.
  const [invalid, denied] = [['OauthException', 400], ['OauthException', 403]];
  const [missing, conflict] = [['NotFoundException', 404], ['ConflictException', 409]];
  const unprocessable = ['UnprocessableEntityException', 422];
  const reader = connect(READER);
  const expected = [
    [create({ name }), conflict, /exists/],
    [create({ context: unknown }), unprocessable, /organization/],
    [create({ context: { ...context, ...pairs } }), unprocessable, /at most 10 pairs/],
    [create({ name: 'x'.repeat(201) }), unprocessable, /200 characters/],
    [create({ name: 'a/../b' }), unprocessable, /\.\./],
    [create({ context: { ...context, n: 1 } }), invalid, /expected a string/],
    [create({ value: 'x'.repeat(9 << 20) }), ['OauthException', 413], /octet-stream/],
    [() => vault.listObjects({ after: 'nobody' }), missing, /not found/],
    [() => vault.readObject({ id: none }), missing, /not found/],
    [() => vault.readObjectByName('nowhere'), missing, /not found/],
    [() => vault.readObjectByName('nul\0'), invalid, /./],
    [() => vault.describeObject({ id: none }), missing, /not found/],
    [() => vault.listObjectVersions({ id: none }), missing, /not found/],
    [() => vault.updateObject({ id: none, value: 'x' }), missing, /not found/],
    [() => vault.updateObject({ id, value: 'x', versionCheck: made.versionId }), conflict, /is at version/],
    [() => vault.deleteObject({ id: none }), missing, /not found/],
    [() => vault.createDataKey({ context: unknown }), unprocessable, /organization/],
    [() => vault.createDataKey({ context: { ...context, n: 1 } }), invalid, /expected a string/],
    [() => vault.decryptDataKey({ keys: 'V09T' }), invalid, /encrypted keys/],
    [() => workos.organizations.getOrganization('org_01EHZNVPK3SFK441A1RGBFSHRT'), missing, /organization/],
    [() => workos.organizations.createOrganization({ name: other }), conflict, /exists/],
    [() => workos.organizations.createOrganization({ name: '.hidden' }), unprocessable, /./],
    [() => connect('sk_wrong').vault.readObject({ id }), ['UnauthorizedException', 401], /authorize|API key/],
    [() => reader.vault.updateObject({ id, value: 'x' }), denied, /no write permission/],
    [() => reader.vault.createDataKey({ context }), denied, /no write permission/],
    [() => reader.organizations.deleteOrganization(organization.id), denied, /no admin permission/],
  ];
  if (major >= 11) {
    expected.push(
      [() => vault.listObjects({ limit: 0 }), invalid, /limit/],
      [() => vault.deleteObject({ id, versionCheck: made.versionId }), conflict, /is at version/],
      [() => vault.createRekey({ context, encryptedKeys: 'V09T' }), invalid, /encrypted keys/],
      [() => vault.createRekey({ context: unknown, encryptedKeys }), unprocessable, /organization/],
    );
  }
  for (const [call, [type, status], message] of expected) {
    const refused = await refusal(call());
    assert.deepEqual([refused.name, refused.status], [type, status], `${call}: ${refused.message}`);
    assert.match(refused.message, message, `${call}`);
  }
});

await check('a key that is not to be had and too many wrong keys are typed too', async () => {
  const hasty = (key) => connect(key, { maxRetries: 0 });
  const name = `closed ${version}`;
  const { id } = await workos.organizations.createOrganization({ name });
  const order = (what) => fetch(`http://127.0.0.1:${PORT}/organizations/${id}/${what}`, { method: 'POST', headers: { Authorization: `Bearer ${KEY}` } });
  const made = await vault.createObject({ name: 'n', value: 'v', context: { organizationId: id } });
  assert.equal((await order('lock')).status, 204);
  const closed = await refusal(hasty(KEY).vault.readObject({ id: made.id }));
  assert.equal(closed.status, 503, closed.message);
  assert.match(closed.message, /locked/);
  assert.equal((await order('unlock')).status, 204);
  assert.equal((await vault.readObject({ id: made.id })).value, 'v');
  const wrong = hasty('sk_wrong').vault;
  const all = await Promise.all(Array.from({ length: 100 }, () => refusal(wrong.readObject({ id: made.id }))));
  const tooMany = all.filter((refused) => refused.name === 'RateLimitExceededException');
  assert.ok(tooMany.length > 0);
  assert.match(tooMany[0].message, /too many requests/);
  assert.ok(all.every((refused) => [401, 429].includes(refused.status)));
});

await check('events', async () => {
  const { id } = await vault.createObject({ name: `events/${version}`, value: 'v', context });
  await vault.readObject({ id });
  await vault.deleteObject({ id });
  const events = ['vault.data.created', 'vault.data.read', 'vault.data.deleted', 'vault.kek.created', 'vault.names.listed'];
  const seen = [];
  let after;
  do {
    const page = await workos.events.listEvents({ events, limit: 100, ...(after ? { after } : {}) });
    seen.push(...page.data);
    after = page.listMetadata.after;
  } while (after);
  assert.ok(seen.length >= 3);
  // The earlier one has no names for what happens in a vault.
  if (major >= 11) {
    assert.ok(seen.some(({ event }) => event === 'vault.kek.created') && seen.every(({ event }) => events.includes(event)));
    const ours = seen.filter(({ data }) => data.kvName === `events/${version}`);
    assert.deepEqual(ours.map(({ event }) => event), events.slice(0, 3));
    assert.deepEqual([ours[0].data.actorSource, ours[0].data.actorName, ours[0].data.keyContext], ['api', 'clients', context]);
  }
});

await check('organizations', async () => {
  const made = await workos.organizations.createOrganization({ name: `Foo ${version}`, externalId: `ext-${version}`, metadata: { t: 'x' } });
  assert.equal((await workos.organizations.getOrganizationByExternalId(`ext-${version}`)).id, made.id);
  assert.equal((await workos.organizations.updateOrganization({ organization: made.id, name: `Bar ${version}` })).name, `Bar ${version}`);
  const listed = await workos.organizations.listOrganizations({ limit: 100 });
  assert.ok(listed.data.some((organization) => organization.id === made.id && organization.metadata.t === 'x'));
  await workos.organizations.deleteOrganization(made.id);
});

console.log(`${passed} passed, ${failed} failed`);
process.exit(failed ? 1 : 0);
