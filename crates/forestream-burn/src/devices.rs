//! Devices by name: those of this build, the processor first.

use burn_tensor::Device;
#[cfg(any(feature = "wgpu", feature = "vulkan", feature = "metal"))]
use burn_tensor::DeviceKind;

/// A kind of device that this build can use.
#[derive(Debug)]
pub struct NamedDevice {
    /// The name that Burn gives it.
    pub name: &'static str,
    open: fn() -> Device,
}

/// The devices of this build; Cargo features add to them.
pub static DEVICES: &[NamedDevice] = &[
    NamedDevice { name: "flex", open: Device::flex },
    #[cfg(feature = "wgpu")]
    NamedDevice { name: "wgpu", open: || Device::wgpu(DeviceKind::DefaultDevice) },
    #[cfg(feature = "vulkan")]
    NamedDevice { name: "vulkan", open: || Device::vulkan(DeviceKind::DefaultDevice) },
    #[cfg(feature = "metal")]
    NamedDevice { name: "metal", open: || Device::metal(DeviceKind::DefaultDevice) },
    #[cfg(feature = "cuda")]
    NamedDevice { name: "cuda", open: || Device::cuda(0) },
    #[cfg(feature = "rocm")]
    NamedDevice { name: "rocm", open: || Device::rocm(0) },
];

impl NamedDevice {
    /// The first device of this kind; one that the machine lacks fails when something is computed on it.
    pub fn open(&self) -> Device {
        (self.open)()
    }
}
