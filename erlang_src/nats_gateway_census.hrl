%% The census's row of one connected client.

-record(census, {
    pid :: pid(),
    cid :: pos_integer(),
    listener :: atom() | binary(),
    %% milliseconds of the system's time: when it came, and when a message or subscription changed
    start :: integer(),
    active :: integer(),
    account = <<"$G">> :: binary(),
    figures = #{} :: nats_gateway_census:figures()
}).
