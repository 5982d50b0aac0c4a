//! The calls of the hot path, straight on the module's C interface: one call and a fixed buffer.
//!
//! `cryptoki` asks for the length first, which doubles the round trips of a network token and fails on
//! modules that report it too short. It is passed by as well where a token's clock, which it would read, is none.

use cryptoki::context::Function;
use cryptoki::error::{Error, Rv};
use cryptoki::slot::{Slot, TokenInfo};
use cryptoki_sys::*;
use libloading::{Library, Symbol};
use std::ffi::c_void;
use std::path::Path;
use zeroize::Zeroizing;

/// Room for a DEK wrapped ten times, with an IV of the token's making.
const ROOM: usize = 256;
/// Bytes of the longest IV that a token makes.
pub const LONGEST_IV: usize = 16;

type Init = unsafe extern "C" fn(CK_SESSION_HANDLE, *mut CK_MECHANISM, CK_OBJECT_HANDLE) -> CK_RV;
type Run = unsafe extern "C" fn(CK_SESSION_HANDLE, *mut CK_BYTE, CK_ULONG, *mut CK_BYTE, *mut CK_ULONG) -> CK_RV;

/// AES-256-GCM (PKCS#11 3.1, 6.13.3) and HMAC-SHA256 (6.19.3) under a key of the token.
pub struct Hot {
    encrypt: (Init, Run),
    decrypt: (Init, Run),
    sign: (Init, Run),
    token_info: unsafe extern "C" fn(CK_SLOT_ID, *mut CK_TOKEN_INFO) -> CK_RV,
    /// The functions live as long as it.
    _library: Library,
}

/// A key, in the session that uses it.
#[derive(Clone, Copy)]
pub struct Place {
    pub session: CK_SESSION_HANDLE,
    pub key: CK_OBJECT_HANDLE,
}

/// What the token wrote.
pub struct Output {
    room: Zeroizing<[u8; ROOM]>,
    len: usize,
}

impl Output {
    pub fn bytes(&self) -> &[u8] {
        &self.room[..self.len]
    }
}

impl Hot {
    /// `None` for a module that gives each caller an instance of its own, as p11-kit's client does: sessions of one
    /// mean nothing in another. The reason of an error is for the operator.
    pub fn load(path: &Path) -> Result<Option<Self>, String> {
        // SAFETY: the operator names the module and trusts its initializers with the keys themselves.
        let library = unsafe { Library::new(path) }.map_err(|error| error.to_string())?;
        // SAFETY: only whether the symbol is there counts.
        if unsafe { library.get::<*const c_void>(b"NSC_ModuleDBFunc\0") }.is_ok() {
            return Err(
                "this is NSS's own token, which ignores templates that keep a KEK inside and cannot be started \
                 again after a failure; use another token"
                    .to_owned(),
            );
        }
        let (first, second) = (function_list(&library)?, function_list(&library)?);
        if first != second {
            return Ok(None);
        }
        // SAFETY: after CKR_OK it points to the module's own list, which is never freed; it need not be aligned.
        let list = unsafe { first.read_unaligned() };
        let missing = || "it lacks one of C_Encrypt, C_Decrypt, C_Sign and their C_…Init".to_owned();
        let pair = |init: CK_C_EncryptInit, run: CK_C_Encrypt| Some((init?, run?));
        Ok(Some(Hot {
            encrypt: pair(list.C_EncryptInit, list.C_Encrypt).ok_or_else(missing)?,
            decrypt: pair(list.C_DecryptInit, list.C_Decrypt).ok_or_else(missing)?,
            sign: pair(list.C_SignInit, list.C_Sign).ok_or_else(missing)?,
            token_info: list.C_GetTokenInfo.ok_or("it lacks C_GetTokenInfo")?,
            _library: library,
        }))
    }

    /// The ciphertext and its 128-bit tag, and whatever the token appends; `iv` as the token leaves it.
    pub fn encrypt(&self, at: Place, iv: &mut [u8], aad: &[u8; 32], plaintext: &[u8]) -> Result<Output, Error> {
        gcm(self.encrypt, (Function::EncryptInit, Function::Encrypt), at, iv, aad, plaintext)
    }

    /// The plaintext. After an error the session may be stuck in the operation: discard it.
    pub fn decrypt(&self, at: Place, iv: &[u8], aad: &[u8; 32], ciphertext: &[u8]) -> Result<Output, Error> {
        let mut iv = iv.to_vec();
        gcm(self.decrypt, (Function::DecryptInit, Function::Decrypt), at, &mut iv, aad, ciphertext)
    }

    /// What a token says of itself, but for its time: opencryptoki 3.8 has a clock and tells it in a form of its own.
    pub fn token_info(&self, slot: Slot) -> Result<TokenInfo, Error> {
        let mut info = CK_TOKEN_INFO::default();
        // SAFETY: `info` is a place for what the call writes.
        let rv = unsafe { (self.token_info)(slot.into(), &mut info) };
        Rv::from(rv).into_result(Function::GetTokenInfo)?;
        info.flags &= !CKF_CLOCK_ON_TOKEN;
        info.try_into()
    }

    /// HMAC-SHA256.
    pub fn sign(&self, at: Place, message: &[u8]) -> Result<Output, Error> {
        let mut mechanism =
            CK_MECHANISM { mechanism: CKM_SHA256_HMAC, pParameter: std::ptr::null_mut(), ulParameterLen: 0 };
        call(self.sign, (Function::SignInit, Function::Sign), at, &mut mechanism, message)
    }
}

fn function_list(library: &Library) -> Result<*mut CK_FUNCTION_LIST, String> {
    type GetFunctionList = unsafe extern "C" fn(*mut *mut CK_FUNCTION_LIST) -> CK_RV;
    // SAFETY: PKCS#11 fixes the type of C_GetFunctionList.
    let get: Symbol<GetFunctionList> =
        unsafe { library.get(b"C_GetFunctionList\0") }.map_err(|error| error.to_string())?;
    let mut list = std::ptr::null_mut();
    // SAFETY: `list` is a place for the pointer that the call writes.
    let rv = unsafe { get(&mut list) };
    if rv != CKR_OK || list.is_null() {
        return Err(format!("C_GetFunctionList returns {rv:#x}"));
    }
    Ok(list)
}

fn gcm(
    functions: (Init, Run),
    names: (Function, Function),
    at: Place,
    iv: &mut [u8],
    aad: &[u8; 32],
    input: &[u8],
) -> Result<Output, Error> {
    // A copy, since the interface takes a mutable pointer.
    let mut aad = *aad;
    let mut parameters = CK_GCM_PARAMS {
        pIv: iv.as_mut_ptr(),
        ulIvLen: iv.len() as CK_ULONG,
        ulIvBits: 8 * iv.len() as CK_ULONG,
        pAAD: aad.as_mut_ptr(),
        ulAADLen: aad.len() as CK_ULONG,
        ulTagBits: 128,
    };
    let mut mechanism = CK_MECHANISM {
        mechanism: CKM_AES_GCM,
        pParameter: (&raw mut parameters).cast::<c_void>(),
        ulParameterLen: size_of::<CK_GCM_PARAMS>() as CK_ULONG,
    };
    call(functions, names, at, &mut mechanism, input)
}

/// What the mechanism points to lives until the operation has ended, which is when this returns.
fn call(
    (init, run): (Init, Run),
    names: (Function, Function),
    at: Place,
    mechanism: &mut CK_MECHANISM,
    input: &[u8],
) -> Result<Output, Error> {
    // SAFETY: the mechanism and what it points to outlive the operation.
    let rv = unsafe { init(at.session, mechanism, at.key) };
    Rv::from(rv).into_result(names.0)?;

    let mut input = Zeroizing::new(input.to_vec());
    let mut room = Zeroizing::new([0; ROOM]);
    let mut len = ROOM as CK_ULONG;
    // SAFETY: input and output are buffers of the lengths passed with them, and `len` is writable.
    let rv = unsafe { run(at.session, input.as_mut_ptr(), input.len() as CK_ULONG, room.as_mut_ptr(), &mut len) };
    Rv::from(rv).into_result(names.1)?;
    if len as usize > ROOM {
        return Err(Error::InvalidValue);
    }
    Ok(Output { room, len: len as usize })
}
