namespace spiking {}
