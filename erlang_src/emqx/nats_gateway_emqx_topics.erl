%% Topics and filters in EMQX's form: with the mountpoint, or as records of shared subscriptions.
-module(nats_gateway_emqx_topics).

-export([mount/2]).
-export([record/2]).
-export([broker_key/2]).
-export([key/1]).
-export([parse/2]).

-export_type([topic/0]).

%% A filter, or EMQX's record of a shared filter.
-type topic() :: binary() | tuple().

-spec mount(topic(), Mountpoint :: binary()) -> topic().
mount(Topic, <<>>) -> Topic;
mount(Topic, Mountpoint) -> emqx_mountpoint:mount(Mountpoint, Topic).

-spec record(ShareName :: undefined | binary(), Filter :: binary()) -> topic().
record(undefined, Filter) -> Filter;
record(ShareName, Filter) -> emqx_topic:make_shared_record(ShareName, Filter).

%% The key under which a subscription's deliveries arrive. A hook may have changed the topic.
-spec broker_key(nats_gateway_host:key(), topic()) -> nats_gateway_host:key().
broker_key({ShareName, _}, Topic) -> {ShareName, emqx_topic:get_shared_real_topic(Topic)}.

-spec key(topic()) -> nats_gateway_host:key().
key(Filter) when is_binary(Filter) -> {undefined, Filter};
key(Shared) -> {share_name(Shared), emqx_topic:get_shared_real_topic(Shared)}.

%% EMQX has no accessor for this field. The text of the record has the form that EMQX parses.
share_name(Shared) ->
    <<"$share/", Rest/binary>> = iolist_to_binary(emqx_topic:maybe_format_share(Shared)),
    hd(binary:split(Rest, <<"/">>)).

%% EMQX's REST API takes any text as a topic.
-spec parse(binary(), Mountpoint :: binary()) ->
    {ok, nats_gateway_host:key(), Options :: map()} | error.
parse(Topic, Mountpoint) ->
    try
        true = emqx_topic:validate(filter, Topic),
        {Parsed, Options} = emqx_topic:parse(Topic),
        {ok, key(mount(Parsed, Mountpoint)), Options}
    catch
        error:_ -> error
    end.
