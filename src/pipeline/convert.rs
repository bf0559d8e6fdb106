//! The base as the GGUF file that is merged into and served: what has to be converted is converted once, then found again.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::base::{Base, Origin, hub_snapshot};
use crate::error::{Error, Result};
use crate::export::convert::{ConvertType, convert, type_name};
use crate::export::merge::{MergeType, store_as};
use crate::formats::gguf::Gguf;
use crate::runtime::hub::Event;

/// Raised when the same folder gives another file: kept ones are then made anew.
const MAKE: u32 = 1;

/// The folder that a name means, and what its model is called. A model of the hub that is not here is fetched, which
/// `on_event` hears of.
pub fn folder_of(name: &str, on_event: &mut dyn FnMut(Event)) -> Result<(PathBuf, String)> {
    let path = Path::new(name);
    if path.is_file() {
        return Err(Error::usage(
            format!("{name} is a file, and a Hugging Face folder is converted"),
            "a GGUF file is used as it is; to store one in another type, use llama-quantize",
        ));
    }
    if path.is_dir() {
        return Ok((path.to_owned(), folder_name(path)?));
    }
    if let Some((id, snapshot)) = hub_snapshot(name, on_event)? {
        return Ok((snapshot.folder, id));
    }
    Err(Error::file(
        path,
        "there is no such folder",
        "check the path; --base takes a Hugging Face folder, or the id of a model on the hub (org/name)",
    ))
}

fn folder_name(folder: &Path) -> Result<String> {
    let whole = folder.canonicalize().map_err(Error::io("read", folder))?;
    Ok(whole.file_name().map_or_else(|| "model".to_owned(), |n| n.to_string_lossy().into_owned()))
}

/// The base as GGUF: its own file, or for a folder the one that is kept in `keep_in` under the digest of what the folder
/// holds, made where it is not there yet. `note` is told what is made.
pub fn as_gguf(base: &Base, convert_type: ConvertType, keep_in: &Path, note: &mut dyn FnMut(&str)) -> Result<Arc<Gguf>> {
    let folder = match &base.origin {
        Origin::Folder(folder) => folder,
        Origin::Gguf(gguf) | Origin::BuiltIn(gguf) | Origin::Ollama { gguf, .. } => return Ok(Arc::clone(gguf)),
    };
    let path = keep_in.join(format!("base-{}-{}-{MAKE}.gguf", short(&base.digest()?), type_name(folder, convert_type)?));
    if !path.is_file() {
        std::fs::create_dir_all(keep_in).map_err(Error::io("create", keep_in))?;
        let name = base.hub_id.clone().map_or_else(|| folder_name(folder), Ok)?;
        let report = convert(folder, &name, convert_type, &path)?;
        note(&format!(
            "{} is converted to {} (matrices as {}), and kept for the next time",
            base.name,
            path.display(),
            report.ggml_type
        ));
        report.notes.iter().for_each(|n| note(n));
    }
    Ok(Arc::new(Gguf::open(&path)?))
}

/// `gguf`, the base's file, with the matrices of its blocks in the type asked for: itself where they are in it, or where `keep` is asked
/// for; else the one that is kept in `keep_in`, made where it is not there yet. `note` is told what is made.
pub fn stored_as(
    base: &Base,
    gguf: &Arc<Gguf>,
    merge_type: MergeType,
    keep_in: &Path,
    note: &mut dyn FnMut(&str),
) -> Result<Arc<Gguf>> {
    let asked = match merge_type {
        MergeType::Keep => return Ok(Arc::clone(gguf)),
        MergeType::To(dtype) => dtype,
    };
    let matrices = gguf.tensors.iter().filter(|t| t.name.starts_with("blk.") && t.shape.len() == 2);
    if matrices.into_iter().all(|t| t.ggml_type.dtype() == Some(asked)) {
        return Ok(Arc::clone(gguf));
    }
    let name = merge_type.to_string();
    let path = keep_in.join(stored_name(&base.digest()?, &name));
    if !path.is_file() {
        std::fs::create_dir_all(keep_in).map_err(Error::io("create", keep_in))?;
        let report = store_as(gguf, merge_type, &path)?;
        note(&format!(
            "the base is stored in {name} for the adapter to be put on, and kept for the next time: {}",
            path.display()
        ));
        report.notes().iter().for_each(|n| note(n));
    }
    Ok(Arc::new(Gguf::open(&path)?))
}

/// The file of a base that is stored in another type; `name` as `--type` takes it.
pub(super) fn stored_name(base_digest: &str, name: &str) -> String {
    format!("base-{}-stored-{name}-{MAKE}.gguf", short(base_digest))
}

fn short(digest: &str) -> String {
    digest.trim_start_matches("sha256:").chars().take(16).collect()
}
