//! A PKCS#11 module that forwards everything to another one and behaves, where it is told to, like tokens that are not
//! at hand. The tests compile it by itself (`shimmed.rs`).
//!
//! `VAULTFS_SHIM` names a file with one `NAME=VALUE` a line, read at each call:
//!
//! | line | the token |
//! | --- | --- |
//! | `module=PATH` | is behind this module (read once) |
//! | `gcm=inplace` | writes an IV of its own where it was handed the host's |
//! | `gcm=appended` | appends an IV of its own, 16 bytes, to the ciphertext |
//! | `gcm=none` | has no AES-GCM |
//! | `hmac=none` | has no HMAC-SHA256 |
//! | `delay=MS` | takes this long for each call that reaches it |
//! | `sessions=N` | has lost every session that was opened while N was another |
//! | `login=refused` | refuses every PIN |
//! | `login=lost` | has forgotten, once, who was logged in |
//! | `weak=yes` | ignores what keeps a key from being copied, changed, or unwrapped with other rights |
//! | `copyable=unknown` | is older than the attribute that keeps a key from being copied |
//! | `copies=other` | lets a copy be given any use, as it says |
//! | `copies=readable` | says so of everything |
//! | `record=PATH` | tells this file each plaintext that passes, 32 bytes at a time |

use std::collections::HashMap;
use std::ffi::{CString, c_char, c_int, c_void};
use std::fs::OpenOptions;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

type Word = usize;
type Function = unsafe extern "C" fn(Word, Word, Word, Word, Word, Word, Word, Word) -> Word;

const OK: Word = 0;
const ATTRIBUTE_TYPE_INVALID: Word = 0x12;
const MECHANISM_INVALID: Word = 0x70;
const PIN_INCORRECT: Word = 0xA0;
const SESSION_HANDLE_INVALID: Word = 0xB3;
const AES_GCM: Word = 0x1087;
const SENSITIVE: Word = 0x103;
const EXTRACTABLE: Word = 0x162;
const COPYABLE: Word = 0x171;
const OWN_IV: usize = 16;

/// CK_FUNCTION_LIST: a version, padded to a word, and 68 functions in the order of PKCS#11 2.40.
#[repr(C)]
pub struct List {
    version: Word,
    functions: [Word; 68],
}

/// CK_GCM_PARAMS
#[repr(C)]
struct Gcm {
    iv: *mut u8,
    iv_len: Word,
    iv_bits: Word,
    aad: *mut u8,
    aad_len: Word,
    tag_bits: Word,
}

/// CK_MECHANISM
#[repr(C)]
struct Mechanism {
    mechanism: Word,
    parameter: *mut c_void,
    parameter_len: Word,
}

/// CK_ATTRIBUTE
#[repr(C)]
#[derive(Clone, Copy)]
struct Attribute {
    attribute: Word,
    value: *mut c_void,
    len: Word,
}

unsafe extern "C" {
    fn dlopen(path: *const c_char, flags: c_int) -> *mut c_void;
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
}

static REAL: OnceLock<&'static List> = OnceLock::new();
static OWN: OnceLock<List> = OnceLock::new();
/// What `sessions` was when each session was opened.
static OPENED: Mutex<Option<HashMap<Word, String>>> = Mutex::new(None);
/// The IV that an encryption under way has, by session.
static IVS: Mutex<Option<HashMap<Word, [u8; OWN_IV]>>> = Mutex::new(None);

/// Whether `login=lost` was seen to.
static LOGGED_OUT: AtomicBool = AtomicBool::new(false);

fn setting(name: &str) -> Option<String> {
    let text = std::fs::read_to_string(std::env::var_os("VAULTFS_SHIM")?).ok()?;
    let found = text.lines().filter_map(|line| line.split_once('=')).find(|(n, _)| *n == name);
    found.map(|(_, value)| value.to_owned())
}

fn is(name: &str, value: &str) -> bool {
    setting(name).as_deref() == Some(value)
}

fn real() -> &'static List {
    REAL.get_or_init(|| {
        let path = CString::new(setting("module").expect("module=PATH")).unwrap();
        // SAFETY: the module's own list is as PKCS#11 says, and lives as long as the process.
        unsafe {
            let library = dlopen(path.as_ptr(), 2);
            assert!(!library.is_null(), "cannot load {path:?}");
            let get = dlsym(library, c"C_GetFunctionList".as_ptr());
            let get: unsafe extern "C" fn(*mut *const List) -> Word = std::mem::transmute(get);
            let mut list = std::ptr::null();
            assert_eq!(get(&mut list), OK);
            &*list
        }
    })
}

/// The real function at this place of the list. It takes at most eight words, and ignores those it has no use for.
fn at(place: usize) -> Function {
    // SAFETY: every function of the list takes words in registers and on the stack, which its caller clears.
    unsafe { std::mem::transmute(real().functions[place]) }
}

fn wait() {
    if let Some(milliseconds) = setting("delay").and_then(|text| text.parse().ok()) {
        std::thread::sleep(Duration::from_millis(milliseconds));
    }
}

fn lost(session: Word) -> bool {
    if !is("login", "lost") {
        LOGGED_OUT.store(false, SeqCst);
    } else if !LOGGED_OUT.swap(true, SeqCst) {
        // SAFETY: C_Logout takes a session.
        unsafe { at(19)(session, 0, 0, 0, 0, 0, 0, 0) };
    }
    let now = setting("sessions").unwrap_or_default();
    OPENED.lock().unwrap().get_or_insert_default().get(&session).is_some_and(|then| *then != now)
}

fn record(bytes: *const u8, len: usize) {
    if let (Some(path), 32) = (setting("record"), len) {
        // SAFETY: the caller passes a buffer of this length.
        let bytes = unsafe { std::slice::from_raw_parts(bytes, len) };
        let file = OpenOptions::new().append(true).create(true).open(path);
        file.and_then(|mut file| file.write_all(bytes)).expect("the record is writable");
    }
}

fn random(bytes: &mut [u8]) {
    use std::io::Read;
    std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(bytes)).expect("randomness");
}

/// Functions that reach the token in a session, which is their first word: they wait, and lose their session.
macro_rules! in_session {
    ($($name:ident = $place:expr;)*) => {$(
        unsafe extern "C" fn $name(s: Word, b: Word, c: Word, d: Word, e: Word, f: Word, g: Word, h: Word) -> Word {
            wait();
            if lost(s) {
                return SESSION_HANDLE_INVALID;
            }
            // SAFETY: as the caller passes them.
            unsafe { at($place)(s, b, c, d, e, f, g, h) }
        }
    )*};
}

in_session! {
    set_pin = 11;
    close_session = 13;
    session_info = 15;
    destroy_object = 22;
    object_size = 23;
    get_attributes = 24;
    find_init = 26;
    find = 27;
    find_final = 28;
    sign = 43;
    wrap_key = 60;
}

unsafe extern "C" fn token_info(a: Word, b: Word, c: Word, d: Word, e: Word, f: Word, g: Word, h: Word) -> Word {
    wait();
    // SAFETY: as the caller passes them.
    unsafe { at(6)(a, b, c, d, e, f, g, h) }
}

unsafe extern "C" fn open_session(a: Word, b: Word, c: Word, d: Word, e: Word, f: Word, g: Word, h: Word) -> Word {
    wait();
    // SAFETY: as the caller passes them; the fifth is the place for the handle.
    unsafe {
        let done = at(12)(a, b, c, d, e, f, g, h);
        if done == OK {
            let now = setting("sessions").unwrap_or_default();
            OPENED.lock().unwrap().get_or_insert_default().insert(*(e as *const Word), now);
        }
        done
    }
}

unsafe extern "C" fn login(a: Word, b: Word, c: Word, d: Word, e: Word, f: Word, g: Word, h: Word) -> Word {
    wait();
    match (is("login", "refused"), lost(a)) {
        (_, true) => SESSION_HANDLE_INVALID,
        (true, _) => PIN_INCORRECT,
        // SAFETY: as the caller passes them.
        _ => unsafe { at(18)(a, b, c, d, e, f, g, h) },
    }
}

/// The template without what a weak token ignores: COPYABLE, MODIFIABLE, UNWRAP_TEMPLATE.
fn weakened(template: Word, count: Word) -> Vec<Attribute> {
    // SAFETY: the caller passes an array of this length.
    let all = unsafe { std::slice::from_raw_parts(template as *const Attribute, count) };
    let ignored: &[Word] = if is("weak", "yes") { &[0x170, COPYABLE, 0x4000_0212] } else { &[] };
    all.iter().filter(|attribute| !ignored.contains(&attribute.attribute)).copied().collect()
}

unsafe extern "C" fn generate_key(s: Word, b: Word, c: Word, d: Word, e: Word, f: Word, g: Word, h: Word) -> Word {
    wait();
    if lost(s) {
        return SESSION_HANDLE_INVALID;
    }
    let template = weakened(c, d);
    if is("copyable", "unknown") && template.iter().any(|attribute| attribute.attribute == COPYABLE) {
        return ATTRIBUTE_TYPE_INVALID;
    }
    // SAFETY: as the caller passes them, with a template that lives as long as the call.
    unsafe { at(58)(s, b, template.as_ptr() as Word, template.len(), e, f, g, h) }
}

unsafe extern "C" fn unwrap_key(s: Word, b: Word, c: Word, d: Word, e: Word, f: Word, g: Word, h: Word) -> Word {
    wait();
    // SAFETY: as the caller passes them.
    if lost(s) { SESSION_HANDLE_INVALID } else { unsafe { at(61)(s, b, c, d, e, f, g, h) } }
}

unsafe extern "C" fn copy_object(s: Word, b: Word, c: Word, d: Word, e: Word, f: Word, g: Word, h: Word) -> Word {
    wait();
    if lost(s) {
        return SESSION_HANDLE_INVALID;
    }
    // SAFETY: the caller passes an array of this length.
    let asked = unsafe { std::slice::from_raw_parts(c as *const Attribute, d) };
    let shows = asked.iter().any(|attribute| [SENSITIVE, EXTRACTABLE].contains(&attribute.attribute));
    let feigned = is("copies", "readable") || is("copies", "other") && !shows;
    // SAFETY: as the caller passes them.
    unsafe { at(21)(s, b, c, if feigned { 0 } else { d }, e, f, g, h) }
}

unsafe extern "C" fn set_attributes(s: Word, b: Word, c: Word, d: Word, e: Word, f: Word, g: Word, h: Word) -> Word {
    wait();
    match (lost(s), is("copies", "readable")) {
        (true, _) => SESSION_HANDLE_INVALID,
        (_, true) => OK,
        // SAFETY: as the caller passes them.
        _ => unsafe { at(25)(s, b, c, d, e, f, g, h) },
    }
}

unsafe extern "C" fn sign_init(s: Word, b: Word, c: Word, d: Word, e: Word, f: Word, g: Word, h: Word) -> Word {
    wait();
    match (lost(s), is("hmac", "none")) {
        (true, _) => SESSION_HANDLE_INVALID,
        (_, true) => MECHANISM_INVALID,
        // SAFETY: as the caller passes them.
        _ => unsafe { at(42)(s, b, c, d, e, f, g, h) },
    }
}

unsafe extern "C" fn encrypt_init(s: Word, b: Word, c: Word, d: Word, e: Word, f: Word, g: Word, h: Word) -> Word {
    wait();
    if lost(s) {
        return SESSION_HANDLE_INVALID;
    }
    // SAFETY: the second is a mechanism, whose parameter is CK_GCM_PARAMS where it is AES-GCM.
    let asked = unsafe { &*(b as *const Mechanism) };
    if asked.mechanism != AES_GCM {
        // SAFETY: as the caller passes them.
        return unsafe { at(29)(s, b, c, d, e, f, g, h) };
    }
    // SAFETY: as above.
    let gcm = unsafe { &*(asked.parameter as *const Gcm) };
    let mut own = [0; OWN_IV];
    random(&mut own);
    match setting("gcm").as_deref() {
        Some("none") => MECHANISM_INVALID,
        Some("appended") => {
            let mut gcm = Gcm { iv: own.as_mut_ptr(), iv_len: OWN_IV, iv_bits: 8 * OWN_IV, ..*gcm };
            let parameter = (&raw mut gcm).cast();
            let mechanism = Mechanism { mechanism: AES_GCM, parameter, parameter_len: size_of::<Gcm>() };
            // SAFETY: the mechanism lives as long as the call, and the token copies what it needs.
            let done = unsafe { at(29)(s, &raw const mechanism as Word, c, d, e, f, g, h) };
            IVS.lock().unwrap().get_or_insert_default().insert(s, own);
            done
        }
        other => {
            if other == Some("inplace") {
                // SAFETY: the caller's IV has this length.
                unsafe { gcm.iv.copy_from(own.as_ptr(), gcm.iv_len.min(OWN_IV)) };
            }
            // SAFETY: as the caller passes them.
            unsafe { at(29)(s, b, c, d, e, f, g, h) }
        }
    }
}

unsafe extern "C" fn encrypt(s: Word, b: Word, c: Word, d: Word, e: Word, f: Word, g: Word, h: Word) -> Word {
    wait();
    if lost(s) {
        return SESSION_HANDLE_INVALID;
    }
    record(b as *const u8, c);
    // SAFETY: as the caller passes them; the fifth is the length of the room, and then of what is in it.
    unsafe {
        let (room, len) = (d as *mut u8, &mut *(e as *mut Word));
        let whole = *len;
        let done = at(30)(s, b, c, d, e, f, g, h);
        let own = IVS.lock().unwrap().get_or_insert_default().remove(&s);
        if let (OK, Some(own)) = (done, own) {
            assert!(!room.is_null() && *len + OWN_IV <= whole, "no room for the IV");
            room.add(*len).copy_from(own.as_ptr(), OWN_IV);
            *len += OWN_IV;
        }
        done
    }
}

unsafe extern "C" fn decrypt_init(s: Word, b: Word, c: Word, d: Word, e: Word, f: Word, g: Word, h: Word) -> Word {
    wait();
    // SAFETY: the second is a mechanism.
    let gcm = unsafe { (*(b as *const Mechanism)).mechanism } == AES_GCM;
    match (lost(s), gcm && is("gcm", "none")) {
        (true, _) => SESSION_HANDLE_INVALID,
        (_, true) => MECHANISM_INVALID,
        // SAFETY: as the caller passes them.
        _ => unsafe { at(33)(s, b, c, d, e, f, g, h) },
    }
}

unsafe extern "C" fn decrypt(s: Word, b: Word, c: Word, d: Word, e: Word, f: Word, g: Word, h: Word) -> Word {
    wait();
    if lost(s) {
        return SESSION_HANDLE_INVALID;
    }
    // SAFETY: as the caller passes them; the fifth is the length of what was written.
    unsafe {
        let done = at(34)(s, b, c, d, e, f, g, h);
        if done == OK {
            record(d as *const u8, *(e as *const Word));
        }
        done
    }
}

/// # Safety
/// `list` is a place for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn C_GetFunctionList(list: *mut *const List) -> Word {
    let own = OWN.get_or_init(|| {
        let mut functions = real().functions;
        let ours: [(usize, Function); 23] = [
            (6, token_info),
            (11, set_pin),
            (12, open_session),
            (13, close_session),
            (15, session_info),
            (18, login),
            (21, copy_object),
            (22, destroy_object),
            (23, object_size),
            (24, get_attributes),
            (25, set_attributes),
            (26, find_init),
            (27, find),
            (28, find_final),
            (29, encrypt_init),
            (30, encrypt),
            (33, decrypt_init),
            (34, decrypt),
            (42, sign_init),
            (43, sign),
            (58, generate_key),
            (60, wrap_key),
            (61, unwrap_key),
        ];
        ours.iter().for_each(|(place, function)| functions[*place] = *function as Word);
        List { version: real().version, functions }
    });
    // SAFETY: as the caller promises.
    unsafe { *list = own };
    OK
}
