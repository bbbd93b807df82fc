//! gRPC: conversion between messages and calls, and server reflection.

pub mod forge;
mod reflection;
