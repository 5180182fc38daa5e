%% The key/value store over the retained messages of an EMQX cluster.
%%
%% The revision of a value is the time in the id of its message, in microseconds. A write of this
%% store that would not get a later one than the value before it, because the clocks of two nodes
%% differ, has its revision in a header of the message.
%%
%% A write holds a lock of the cluster for its topic: the one with which EMQX's gateway registers its
%% clients. So create and update are atomic among the NATS clients of the cluster. MQTT clients do
%% not ask for the lock.
-module(nats_gateway_emqx_kv).

-behaviour(nats_gateway_kv_store).

-export([new/3]).
-export([where/0]).
-export([open/2]).
-export([hand_over/2]).
-export([read/2]).
-export([write/4]).
-export([fold/4]).
-export([subscribe/2]).
-export([change/2]).
%% For the core node of a replicant.
-export([entry/1]).

%% Message headers of the client, and its name.
-type context() :: #{clientid := binary(), headers := map(), mountpoint := binary()}.

-define(REVISION, nats_gateway_kv_revision).
-define(LOCKER, emqx_gateway_nats_locker).

%% How long a write waits for another one of the same key.
-define(LOCK_MS, 5000).
-define(MAX_NAP_MS, 20).

-spec new(ClientId :: binary(), Headers :: map(), Mountpoint :: binary()) ->
    nats_gateway_kv_store:store().
new(ClientId, Headers, Mountpoint) ->
    {?MODULE, #{clientid => ClientId, headers => Headers, mountpoint => Mountpoint}}.

-spec where() -> nats_gateway_kv_store:where().
where() -> cluster.

-spec open(session | consumer, context()) -> {context(), none}.
open(_, Context) -> {Context, none}.

-spec hand_over(context(), context()) -> context().
hand_over(OfSession, _) -> OfSession.

-spec read([Topic :: binary()], context()) -> [{ok, nats_gateway_kv_store:value()} | none].
read(Topics, _) -> [found(nats_gateway_emqx_retained:read(Topic)) || Topic <- Topics].

found(none) -> none;
found({ok, Message}) -> {ok, value(Message)}.

value(Message) ->
    #{
        revision => revision(Message),
        at => emqx_message:timestamp(Message),
        headers => put_headers(nats_gateway_emqx_message:headers(emqx_message:get_headers(Message))),
        payload => iolist_to_binary(emqx_message:payload(Message))
    }.

revision(Message) ->
    case emqx_message:get_header(?REVISION, Message, undefined) of
        Revision when is_integer(Revision) -> Revision;
        _ -> emqx_guid:timestamp(emqx_message:id(Message))
    end.

%% A value whose publisher says that it is deleted is a value all the same.
put_headers({properties, Pairs, ContentType}) ->
    case [Pair || Pair = {Name, _} <- Pairs, not is_operation(Name)] of
        [] when ContentType =:= undefined -> undefined;
        Others -> {properties, Others, ContentType}
    end;
put_headers(Headers) ->
    Headers.

is_operation(Name) -> string:lowercase(Name) =:= <<"kv-operation">>.

-spec write(Topic :: binary(), nats_gateway_kv_store:expected(), Write :: tuple(), context()) ->
    {ok, pos_integer()} | {error, nats_gateway_kv_store:write_error()}.
write(Topic, Expected, Write, Context) ->
    Until = erlang:monotonic_time(millisecond) + ?LOCK_MS,
    case locked(Topic, Until, fun() -> write_alone(Topic, Expected, Write, Context) end) of
        {done, Result} -> Result;
        busy -> {error, {failed, <<"others write this key at the same time">>}}
    end.

locked(Topic, Until, Fun) ->
    Resource = {?MODULE, Topic},
    case ekka_locker:acquire(?LOCKER, Resource, quorum) of
        {true, _} ->
            try
                {done, Fun()}
            after
                ekka_locker:release(?LOCKER, Resource, quorum)
            end;
        {false, _} ->
            case erlang:monotonic_time(millisecond) < Until of
                true ->
                    ok = timer:sleep(rand:uniform(?MAX_NAP_MS)),
                    locked(Topic, Until, Fun);
                false ->
                    busy
            end
    end.

write_alone(Topic, Expected, Write, Context) ->
    Last =
        case nats_gateway_emqx_retained:read(Topic) of
            {ok, Message} -> revision(Message);
            none -> 0
        end,
    case Expected of
        any -> publish(Topic, Last, Write, Context);
        Last -> publish(Topic, Last, Write, Context);
        _ -> {error, {wrong_last, Last}}
    end.

publish(Topic, Last, Write, Context) ->
    Message = later(message(Topic, Write, Context), Last),
    _ = emqx_broker:safe_publish(Message),
    stored(Write, Message).

message(Topic, {delete, Block}, Context) ->
    make(Topic, Block, <<>>, undefined, Context);
message(Topic, {put, Block, Payload, Ttl}, Context) ->
    make(Topic, Block, Payload, Ttl, Context).

make(Topic, Block, Payload, Ttl, #{clientid := ClientId, headers := Constant}) ->
    Headers =
        #{properties := Properties} =
        nats_gateway_emqx_message:properties(Constant, undefined, undefined, undefined, Block),
    Expiring =
        case Ttl of
            undefined -> Properties;
            _ -> Properties#{'Message-Expiry-Interval' => Ttl}
        end,
    Flags = #{dup => false, retain => true},
    emqx_message:make(ClientId, 1, Topic, Payload, Flags, Headers#{properties := Expiring}).

later(Message, Last) ->
    case revision(Message) > Last of
        true -> Message;
        false -> emqx_message:set_header(?REVISION, Last + 1, Message)
    end.

%% EMQX does not say whether it has retained a message: its limits may forbid it, and hooks may.
stored({delete, _}, Message) ->
    case nats_gateway_emqx_retained:read(emqx_message:topic(Message)) of
        none -> {ok, revision(Message)};
        {ok, Found} -> stored_later(Found, Message)
    end;
stored({put, _, _, _}, Message) ->
    case nats_gateway_emqx_retained:read(emqx_message:topic(Message)) of
        none -> not_retained();
        {ok, Found} -> stored_later(Found, Message)
    end.

%% An MQTT client may have written since.
stored_later(Found, Message) ->
    Revision = revision(Message),
    case revision(Found) >= Revision of
        true -> {ok, Revision};
        false -> not_retained()
    end.

not_retained() ->
    {error,
        {failed, <<
            "EMQX has not retained the message: the retainer is off, or its max_payload_size, "
            "max_retained_messages or max_publish_rate forbids it"
        >>}}.

-spec fold(Filter :: binary(), fun((binary(), nats_gateway_kv_store:summary(), Acc) -> Acc), Acc, context()) ->
    Acc
when
    Acc :: term().
fold(Filter, Fun, Acc, _) ->
    nats_gateway_emqx_retained:fold(
        Filter,
        fun ?MODULE:entry/1,
        fun({Topic, Summary}, Inner) -> Fun(Topic, Summary, Inner) end,
        Acc
    ).

-spec entry(Message :: tuple()) -> {Topic :: binary(), nats_gateway_kv_store:summary()}.
entry(Message) ->
    {emqx_message:topic(Message), #{
        revision => revision(Message),
        at => emqx_message:timestamp(Message),
        size => iolist_size(emqx_message:payload(Message))
    }}.

%% The process needs a name of its own for EMQX. The retained messages are read in another way.
-spec subscribe(Filter :: binary(), context()) -> ok.
subscribe(Filter, _) ->
    Id =
        case emqx_broker_helper:lookup_subid(self()) of
            undefined -> <<"nats-kv-", (binary:encode_hex(crypto:strong_rand_bytes(8)))/binary>>;
            Known -> Known
        end,
    emqx_broker:subscribe(Filter, Id, #{qos => 1, rh => 2, rap => 1, nl => 0, is_new => true}).

%% Only retained messages are values. One without a payload deletes the key.
-spec change(Message :: term(), context()) -> nats_gateway_kv_store:change() | ignore.
change({deliver, _, Message}, _) ->
    case emqx_message:get_flag(retain, Message) of
        true ->
            Value = #{payload := Payload, headers := Headers} = value(Message),
            Topic = emqx_message:topic(Message),
            case Payload of
                <<>> -> {delete, Topic, Value#{headers := deleted(Message, Headers)}};
                _ -> {put, Topic, Value}
            end;
        _ ->
            ignore
    end;
change(_, _) ->
    ignore.

%% The store itself says how a key was deleted. MQTT clients do not.
deleted(Message, _) ->
    Given = nats_gateway_kv_answer:pairs(
        nats_gateway_emqx_message:headers(emqx_message:get_headers(Message))
    ),
    case [Value || {Name, Value} <- Given, is_operation(Name)] of
        [<<"PURGE">> | _] -> nats_gateway_kv_answer:deleted(<<"PURGE">>);
        _ -> nats_gateway_kv_answer:deleted(<<"DEL">>)
    end.
