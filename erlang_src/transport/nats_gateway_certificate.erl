%% The names in a client's certificate.
-module(nats_gateway_certificate).

-export([name/2]).

-include_lib("public_key/include/public_key.hrl").

-export_type([name/0, peercert/0]).

-type name() :: disabled | cn | dn | san_email | san_dns | san_uri.

%% A certificate in DER, or the fields of the PROXY header if TLS ends at the proxy. It is
%% `undefined' if the client has shown none.
-type peercert() :: undefined | binary() | [{pp2_ssl_cn | atom(), term()}].

%% Returns the requested name, if the certificate has it.
-spec name(name(), peercert()) -> {ok, binary()} | none.
name(disabled, _) ->
    none;
name(_, undefined) ->
    none;
name(Which, Fields) when is_list(Fields) ->
    %% A proxy passes on only the common name. As in EMQX, it is used for the subject, too.
    case lists:keyfind(pp2_ssl_cn, 1, Fields) of
        {_, Name} when Name =/= <<>>, Which =:= cn orelse Which =:= dn -> {ok, Name};
        _ -> none
    end;
name(Which, Der) ->
    #'OTPCertificate'{tbsCertificate = Certificate} = public_key:pkix_decode_cert(Der, otp),
    case name_of(Which, Certificate) of
        <<>> -> none;
        Name -> {ok, Name}
    end.

name_of(cn, #'OTPTBSCertificate'{subject = {rdnSequence, Sequence}}) ->
    Names = [
        text(Value)
     || #'AttributeTypeAndValue'{type = ?'id-at-commonName', value = Value} <- lists:append(Sequence)
    ],
    iolist_to_binary(lists:join($,, Names));
name_of(dn, #'OTPTBSCertificate'{subject = {rdnSequence, Sequence}}) ->
    %% RFC 2253: the last attribute comes first
    iolist_to_binary(
        lists:join($,, [lists:join($+, [attribute(A) || A <- Rdn]) || Rdn <- lists:reverse(Sequence)])
    );
name_of(San, #'OTPTBSCertificate'{extensions = Extensions}) when is_list(Extensions) ->
    Kind =
        case San of
            san_email -> rfc822Name;
            san_dns -> dNSName;
            san_uri -> uniformResourceIdentifier
        end,
    case lists:keyfind(?'id-ce-subjectAltName', #'Extension'.extnID, Extensions) of
        #'Extension'{extnValue = Names} when is_list(Names) ->
            case [Name || {NameKind, Name} <- Names, NameKind =:= Kind] of
                [Name | _] -> text(Name);
                [] -> <<>>
            end;
        _ ->
            <<>>
    end;
name_of(_, _) ->
    <<>>.

attribute(#'AttributeTypeAndValue'{type = Type, value = Value}) ->
    [type(Type), $=, escape(text(Value))].

type(?'id-at-commonName') -> <<"CN">>;
type(?'id-at-localityName') -> <<"L">>;
type(?'id-at-stateOrProvinceName') -> <<"ST">>;
type(?'id-at-organizationName') -> <<"O">>;
type(?'id-at-organizationalUnitName') -> <<"OU">>;
type(?'id-at-countryName') -> <<"C">>;
type({2, 5, 4, 9}) -> <<"STREET">>;
type(?'id-domainComponent') -> <<"DC">>;
type({0, 9, 2342, 19200300, 100, 1, 1}) -> <<"UID">>;
%% EMQX uses this name, although the RFC's table does not have it.
type(?'id-at-surname') -> <<"SN">>;
type(?'id-at-givenName') -> <<"GIVENNAME">>;
type(?'id-at-initials') -> <<"INITIALS">>;
type(?'id-at-generationQualifier') -> <<"GENERATIONQUALIFIER">>;
type(?'id-at-title') -> <<"TITLE">>;
type(?'id-at-serialNumber') -> <<"SERIALNUMBER">>;
type(?'id-at-pseudonym') -> <<"PSEUDONYM">>;
type(?'id-emailAddress') -> <<"EMAILADDRESS">>;
type(Type) -> lists:join($., [integer_to_binary(N) || N <- tuple_to_list(Type)]).

%% A name as UTF-8. A name that OTP has not decoded is mostly a string of some other type.
text({_, Text}) ->
    text(Text);
text(Der) when is_binary(Der) ->
    try public_key:der_decode('DirectoryString', Der) of
        {_, Text} -> text(Text)
    catch
        error:_ -> Der
    end;
text(Text) ->
    unicode:characters_to_binary([code_point(C) || C <- Text]).

%% OTP gives characters outside of Latin-1 in this form.
code_point({A, B, C, D}) -> (A bsl 24) bor (B bsl 16) bor (C bsl 8) bor D;
code_point(C) -> C.

escape(Text) ->
    Size = byte_size(Text),
    [escape(Byte, At, Size - 1) || {Byte, At} <- lists:zip(binary_to_list(Text), lists:seq(0, Size - 1))].

escape($\s, 0, _) -> <<"\\ ">>;
escape($#, 0, _) -> <<"\\#">>;
escape($\s, Last, Last) -> <<"\\ ">>;
escape(C, _, _) when C =:= $"; C =:= $+; C =:= $,; C =:= $;; C =:= $<; C =:= $>; C =:= $\\ -> [$\\, C];
escape(C, _, _) when C < 32; C >= 126 -> [$\\, binary:encode_hex(<<C>>)];
escape(C, _, _) -> C.
