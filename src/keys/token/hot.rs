//! The calls of the hot path, straight on the module's C interface: one call and a fixed buffer.
//!
//! `cryptoki` asks for the length first, which doubles the round trips of a network token and fails on
//! modules that report it too short.

use cryptoki::context::Function;
use cryptoki::error::{Error, Rv};
use cryptoki_sys::*;
use libloading::{Library, Symbol};
use std::ffi::c_void;
use std::path::Path;
use zeroize::Zeroizing;

/// Room for a DEK wrapped ten times, with an IV of the token's making.
const ROOM: usize = 256;

type Init = unsafe extern "C" fn(CK_SESSION_HANDLE, *mut CK_MECHANISM, CK_OBJECT_HANDLE) -> CK_RV;
type Run = unsafe extern "C" fn(CK_SESSION_HANDLE, *mut CK_BYTE, CK_ULONG, *mut CK_BYTE, *mut CK_ULONG) -> CK_RV;

/// AES-256-GCM under a key of the token (PKCS#11 3.1, 6.13.3).
pub struct Hot {
    encrypt_init: Init,
    encrypt: Run,
    decrypt_init: Init,
    decrypt: Run,
    /// The functions live as long as it.
    _library: Library,
}

/// What a key encrypts or decrypts under.
#[derive(Clone, Copy)]
pub struct Gcm<'a> {
    pub session: CK_SESSION_HANDLE,
    pub key: CK_OBJECT_HANDLE,
    pub iv: &'a [u8; 12],
    pub aad: &'a [u8; 32],
}

/// What the token wrote, and the IV as it left it.
pub struct Output {
    room: Zeroizing<[u8; ROOM]>,
    len: usize,
    pub iv: [u8; 12],
}

impl Output {
    pub fn bytes(&self) -> &[u8] {
        &self.room[..self.len]
    }
}

impl Hot {
    /// The reason is for the operator.
    pub fn load(path: &Path) -> Result<Self, String> {
        // SAFETY: the operator names the module and trusts its initializers with the keys themselves.
        let library = unsafe { Library::new(path) }.map_err(|error| error.to_string())?;
        let list = function_list(&library)?;
        let missing = || "it lacks C_EncryptInit, C_Encrypt, C_DecryptInit or C_Decrypt".to_owned();
        Ok(Hot {
            encrypt_init: list.C_EncryptInit.ok_or_else(missing)?,
            encrypt: list.C_Encrypt.ok_or_else(missing)?,
            decrypt_init: list.C_DecryptInit.ok_or_else(missing)?,
            decrypt: list.C_Decrypt.ok_or_else(missing)?,
            _library: library,
        })
    }

    /// The ciphertext and its 128-bit tag.
    pub fn encrypt(&self, gcm: Gcm, plaintext: &[u8]) -> Result<Output, Error> {
        let functions = (self.encrypt_init, self.encrypt);
        call(functions, (Function::EncryptInit, Function::Encrypt), gcm, plaintext)
    }

    /// The plaintext. After an error the session may be stuck in the operation: discard it.
    pub fn decrypt(&self, gcm: Gcm, ciphertext: &[u8]) -> Result<Output, Error> {
        let functions = (self.decrypt_init, self.decrypt);
        call(functions, (Function::DecryptInit, Function::Decrypt), gcm, ciphertext)
    }
}

fn function_list(library: &Library) -> Result<CK_FUNCTION_LIST, String> {
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
    // SAFETY: after CKR_OK it points to the module's own list, which is never freed; it need not be aligned.
    Ok(unsafe { list.read_unaligned() })
}

fn call((init, run): (Init, Run), names: (Function, Function), gcm: Gcm, input: &[u8]) -> Result<Output, Error> {
    // Copies, since the interface takes mutable pointers and some tokens do write their own IV.
    let mut iv = *gcm.iv;
    let mut aad = *gcm.aad;
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
    // SAFETY: the mechanism, its parameters, IV and AAD live until the operation below has ended.
    let rv = unsafe { init(gcm.session, &mut mechanism, gcm.key) };
    Rv::from(rv).into_result(names.0)?;

    let mut input = Zeroizing::new(input.to_vec());
    let mut room = Zeroizing::new([0; ROOM]);
    let mut len = ROOM as CK_ULONG;
    // SAFETY: input and output are buffers of the lengths passed with them, and `len` is writable.
    let rv = unsafe { run(gcm.session, input.as_mut_ptr(), input.len() as CK_ULONG, room.as_mut_ptr(), &mut len) };
    Rv::from(rv).into_result(names.1)?;
    if len as usize > ROOM {
        return Err(Error::InvalidValue);
    }
    Ok(Output { room, len: len as usize, iv })
}
